"""Token routing: in training the middle blocks process a random share of the tokens (SPRINT, TREAD).

With "sprint" (arXiv 2510.21986) the blocks before, the dense ones, see all tokens. The routed, deep blocks see the kept
ones. A learned mask token stands in for the dropped ones, and a linear layer fuses dense and deep tokens for the blocks
after. Of some samples the deep tokens are dropped entirely, which makes a weak branch for guidance. With "tread"
(arXiv 2501.04765) the dropped tokens pass the routed blocks unchanged. Without dropped tokens both process all. A class
token is one of the tokens, and dropped as often as others (SR-DiT).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.transformer.blocks import run_blocks

RoutingKind = Literal["none", "sprint", "tread"]


@dataclass(frozen=True)
class RoutingConfig:
    """Which blocks see a share of the tokens in training, and how many.

    Attributes:
        kind: none; sprint: dense blocks, deep blocks on kept tokens, a mask token for the others, a fusion of both,
            dense blocks; or tread: dropped tokens skip the routed blocks, nothing changes at inference.
        start: Number of blocks before the routed ones.
        stop: Number of the last routed block; null leaves as many blocks after the routed ones as before.
        drop: Share of the tokens that the routed blocks do not see in training.
        path_drop: Probability in training, sample by sample, that sprint's deep tokens are all replaced by the mask
            token; guidance of the kind path_drop needs it.
        full_after_images: Keep all tokens from this many images on; null never. path_drop stays.
    """

    kind: RoutingKind = "none"
    start: int = 2
    stop: int | None = None
    drop: float = 0.75
    path_drop: float = 0.1
    full_after_images: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(RoutingKind):
            raise UserError(f"routing.kind must be one of {', '.join(get_args(RoutingKind))}, got {self.kind!r}")
        if not 0 <= self.drop < 1:
            raise UserError(f"routing.drop must be at least 0 and below 1, got {self.drop}")
        if not 0 <= self.path_drop < 1:
            raise UserError(f"routing.path_drop must be at least 0 and below 1, got {self.path_drop}")
        if self.full_after_images is not None and self.full_after_images < 0:
            raise UserError(
                f"routing.full_after_images must be at least 0, or null for never, got {self.full_after_images}"
            )

    @property
    def drops_paths(self) -> bool:
        """Whether deep tokens of some samples are all dropped in training, as path-drop guidance needs."""
        return self.kind == "sprint" and self.path_drop > 0

    def check(self, depth: int) -> None:
        """Raise UserError unless a network of `depth` blocks has blocks to route."""
        if self.kind != "none" and not 0 <= self.start < self.span(depth)[1] <= depth:
            raise UserError(
                f"routing.start and routing.stop must be 0 <= start < stop <= {depth}, the number of blocks, "
                f"got {self.start} and {self.span(depth)[1]}"
            )

    def check_block(self, key: str, block: int, depth: int, tokens: int) -> None:
        """Raise UserError, which names `key`, if a block (from 1) sees only a share of `tokens` tokens in training."""
        start, stop = self.span(depth)
        if start < block <= stop and self.kept(tokens, 0) < tokens:
            raise UserError(
                f"{key} must not be from {start + 1} to {stop}, the routed blocks, which see kept tokens only in "
                f"training, got {block}"
            )

    def span(self, depth: int) -> tuple[int, int]:
        """Return the number of blocks before the routed ones, and that of the last routed block, of `depth` blocks."""
        return self.start, depth - self.start if self.stop is None else self.stop

    def kept(self, tokens: int, images_seen: int) -> int:
        """Return how many of `tokens` tokens the routed blocks see after `images_seen` images."""
        full = self.full_after_images is not None and images_seen >= self.full_after_images
        return tokens if self.kind == "none" or full else max(1, round(tokens * (1 - self.drop)))


class RoutedNetwork(nn.Module):
    """A transformer whose blocks may be routed.

    Attributes:
        mask_token: (1, 1, D) stands in for dropped tokens; None for other kinds than "sprint", as `fusion`.
        fusion: [dense token, deep token] -> token, initialized like the other linear layers of LightningDiT.
    """

    mask_token: nn.Parameter | None
    fusion: nn.Linear | None

    def add_routing(self, routing: RoutingConfig, width: int) -> None:
        """Add the parts of a routing for tokens of `width` channels."""
        self._routing = routing
        sprint = routing.kind == "sprint"
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if sprint else None
        self.fusion = nn.Linear(2 * width, width) if sprint else None

    @torch.no_grad()
    def reset_routing(self) -> None:
        """Initialize what `add_routing` has added: the mask token normal with standard deviation 0.02."""
        if self.mask_token is not None and self.fusion is not None:
            nn.init.normal_(self.mask_token, std=0.02)
            nn.init.xavier_uniform_(self.fusion.weight)
            nn.init.zeros_(self.fusion.bias)

    def run_routed_blocks(
        self,
        blocks: nn.ModuleList,
        tokens: Tensor,
        condition: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        hidden_blocks: Sequence[int] = (),
        kept: Tensor | None = None,
        path_drop: Tensor | bool = False,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the tokens (B, T, D) after all blocks, and those after each of `hidden_blocks` by its number.

        Args:
            blocks: The blocks.
            tokens: (B, T, D).
            condition: (B, 1, D).
            rotary: Two tables (T, head_dim), or None.
            hidden_blocks: Numbers of blocks, counted from 1.
            kept: (B, K) int64, the tokens that the routed blocks see; None is all.
            path_drop: (B,) bool, True where the mask token replaces all deep tokens. `True` means all
                samples; the deep blocks are not computed then.

        Raises:
            UserError: A block of `hidden_blocks` does not exist or does not see all tokens, or the network has no
                routing for `kept` or `path_drop`.
        """
        routing, depth = self._routing, len(blocks)
        if wrong := [block for block in hidden_blocks if not 1 <= block <= depth]:
            raise UserError(f"hidden_blocks must be from 1 to {depth}, got {wrong[0]}")
        if kept is not None and routing.kind == "none":
            raise UserError("kept must be None for a network without routing")
        if path_drop is not False and routing.kind != "sprint":
            raise UserError("path_drop must be False for a network without routing.kind sprint")
        if routing.kind == "none":
            return run_blocks(blocks, tokens, condition, rotary, hidden_blocks)

        # Dense blocks before the routed ones
        start, stop = routing.span(depth)
        routed = [block - start for block in hidden_blocks if start < block <= stop]
        if routed and (kept is not None or path_drop is True):
            raise UserError(
                f"hidden_blocks must not be from {start + 1} to {stop}, which see kept tokens only, "
                f"got {start + routed[0]}"
            )
        early, late = [b for b in hidden_blocks if b <= start], [b - stop for b in hidden_blocks if b > stop]
        dense, hidden = run_blocks(blocks[:start], tokens, condition, rotary, early)

        # Routed blocks, and dense ones after them
        deep = dense
        if path_drop is not True:
            inner = dense if kept is None else dense.gather(1, _index(kept, dense))
            deep, more = run_blocks(blocks[start:stop], inner, condition, _rotary_of(rotary, kept), routed)
            hidden |= {start + number: value for number, value in more.items()}
        tokens = self._fuse(dense, deep, kept, path_drop)
        tokens, more = run_blocks(blocks[stop:], tokens, condition, rotary, late)
        return tokens, hidden | {stop + number: value for number, value in more.items()}

    def _fuse(self, dense: Tensor, deep: Tensor, kept: Tensor | None, path_drop: Tensor | bool) -> Tensor:
        """Return the tokens (B, T, D) after the routed blocks, from dense tokens (B, T, D) and deep ones (B, K, D)."""
        if self.mask_token is None or self.fusion is None:
            return deep if kept is None else dense.scatter(1, _index(kept, dense), deep)
        masks = self.mask_token.to(dense.dtype).expand_as(dense)
        if path_drop is True:
            deep = masks
        elif kept is not None:
            deep = masks.scatter(1, _index(kept, dense), deep)
        if isinstance(path_drop, Tensor):
            deep = torch.where(path_drop[:, None, None], masks, deep)
        # Under autocast a linear layer gives bfloat16; the residual stream stays float32.
        return self.fusion(torch.cat((dense, deep), dim=2)).to(dense.dtype)


def _index(kept: Tensor, tokens: Tensor) -> Tensor:
    """(B, K) numbers of tokens -> (B, K, D), for `gather` and `scatter`."""
    return kept[..., None].expand(-1, -1, tokens.shape[2])


def _rotary_of(rotary: tuple[Tensor, Tensor] | None, kept: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return the rotary tables of the kept tokens: two (T, head_dim) -> two (B, 1, K, head_dim)."""
    if rotary is None or kept is None:
        return rotary
    return rotary[0][kept][:, None], rotary[1][kept][:, None]
