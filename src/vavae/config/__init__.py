"""Recipes: dataclasses from YAML and the command line, and back."""

from vavae.config.parser import flat, from_plain, load_recipe, parse_command_line, to_plain, to_yaml

__all__ = ["flat", "from_plain", "load_recipe", "parse_command_line", "to_plain", "to_yaml"]
