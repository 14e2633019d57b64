"""Class-conditional images from a LightningDiT; `pipeline.py` appends this to the code of guidance at export."""

# mypy: ignore-errors
# (diffusers makes attributes of its classes at run time)

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from vavae.errors import UserError
from vavae.flow.guidance import Guidance, guided_prediction


class LightningDiTPipeline(DiffusionPipeline):
    """Labels -> images.

    Args:
        transformer: Predicts the velocity of straight paths from noise (time 0) to data (time 1).
        vae: Decodes latents; its configuration has their mean and standard deviation per channel, or a shift and a
            factor for all channels.
        scheduler: Takes the steps; its noise level runs from 1 to 0.
        sampling: Defaults of the call by its names, and steps: grid points, one more than evaluations.
        class_names: Names of the labels, by number.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        transformer: torch.nn.Module,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        sampling: Mapping | None = None,
        class_names: Mapping | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(sampling=dict(sampling or {}), class_names=dict(class_names or {}))
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.factor)

    def save_config(self, save_directory: str | Path, **more) -> None:
        """Write `model_index.json` and the code, so that `from_pretrained` reads what `save_pretrained` writes."""
        super().save_config(save_directory, **more)
        folder = Path(save_directory)
        network = type(getattr(self.transformer, "_orig_mod", self.transformer))  # without torch.compile's wrapper
        shutil.copyfile(inspect.getfile(type(self)), folder / "pipeline.py")
        shutil.copyfile(inspect.getfile(network), folder / "transformer" / "lightningdit.py")
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        index["transformer"] = ["lightningdit", network.__name__]
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    def labels_of(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> list[int]:
        """Return the numbers of classes given by number or name. Raise ValueError for others."""
        given = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
        given = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        by_name = {name: int(number) for number, name in self.config.class_names.items()}
        most = self.transformer.config.num_classes
        labels = [by_name.get(label) if isinstance(label, str) else label for label in given]
        for label, number in zip(given, labels, strict=True):
            if isinstance(number, bool) or not isinstance(number, Integral) or not 0 <= number <= most:
                raise ValueError(
                    f"class_labels must be numbers from 0 to {most} ({most} means no label), or names of classes, "
                    f"got {label!r}"
                )
        if not labels:
            raise ValueError("class_labels must be at least one label, got none")
        return labels

    def latent_shape(self, count: int, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        """Return the shape of the latents of `count` images. Raise ValueError for a size that patches do not divide."""
        network = self.transformer.config
        side = network.latent_size
        rows, columns = (side, side) if isinstance(side, int) else side
        unit = self.factor * network.patch_size
        for name, pixels in (("height", height), ("width", width)):
            if pixels is not None and (pixels < unit or pixels % unit):
                raise ValueError(f"{name} must be a multiple of {unit} pixels, got {pixels}")
        rows = rows if height is None else height // self.factor
        columns = columns if width is None else width // self.factor
        return count, network.latent_channels, rows, columns

    def decode(self, latents: torch.Tensor, output_type: str) -> object:
        """Return the images of normalized latents."""
        stored, device = self.vae.config, latents.device
        std = torch.tensor(stored.latents_std or [1.0], device=device).view(1, -1, 1, 1) / stored.scaling_factor
        mean = torch.tensor(stored.latents_mean or [stored.shift_factor or 0.0], device=device).view(1, -1, 1, 1)
        images = self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample
        return self.image_processor.postprocess(images.float(), output_type=output_type)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_start: float | None = None,
        guidance_stop: float | None = None,
        guidance_channels: int | None = None,
        guidance_kind: str | None = None,
        zero_init_steps: int | None = None,
        shift: float | None = None,
        end: float | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Draw one image per label. None takes the folder's default.

        Args:
            class_labels: Numbers or names of classes; the number of classes itself means no label.
            num_inference_steps: Number of Euler steps.
            guidance_scale: Guidance scale; 1 turns guidance off.
            guidance_start: Guidance acts from this time on (0 noise, 1 data).
            guidance_stop: Guidance acts up to this time.
            guidance_channels: Guide only this many leading channels; 0 guides all.
            guidance_kind: "cfg" (classifier-free), "zero_star" (CFG-Zero*), "internal" for a transformer with an
                auxiliary head, or "path_drop" for one that was trained with SPRINT's routing.
            zero_init_steps: Steps at the start in which "zero_star" does not move.
            shift: Time shift s: grid t' = s·t / (1 + (s − 1)·t); 0 or 1 leaves the grid even.
            end: Last point of the grid before the shift; 1 is data.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            generator: Source of the noise.
            latents: (B, C, h, w) standard normal noise to start from, instead of noise from `generator`.
            output_type: "pil", "np", "pt" (values in [0, 1]) or "latent" (normalized latents).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called after each step as callback(pipeline, step, timestep, tensors); `latents` in
                the returned dictionary replace the step's. `pipeline._interrupt = True` skips the other steps.
            callback_on_step_end_tensor_inputs: Names of the tensors; there are only "latents".

        Raises:
            ValueError: A label, a size, a shape, a number of steps or a setting of guidance is not possible.
        """
        labels = self.labels_of(class_labels)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs must be latents, got {min(unknown)}")
        defaults = self.config.sampling
        steps = defaults.get("steps", 250) - 1 if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        given = {
            "guidance_scale": guidance_scale,
            "guidance_start": guidance_start,
            "guidance_stop": guidance_stop,
            "guidance_channels": guidance_channels,
            "guidance_kind": guidance_kind,
            "zero_init_steps": zero_init_steps,
            "shift": shift,
            "end": end,
        }
        settings = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        shift, end = settings.get("shift", 1.0), settings.get("end", 1.0)
        names = [name for name in given if name not in ("shift", "end") and name in settings]
        options = {name.removeprefix("guidance_"): settings[name] for name in names}
        try:
            guidance = Guidance(**{**options, "channels": options.get("channels") or None})
        except UserError as error:
            raise ValueError(str(error)) from error
        if guidance.still_steps >= steps:
            raise ValueError(f"zero_init_steps must be below {steps} steps, got {guidance.still_steps}")

        device, dtype = self._execution_device, self.transformer.dtype
        shape = self.latent_shape(len(labels), height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents.shape != shape:
            raise ValueError(f"latents must have the shape {shape}, got {tuple(latents.shape)}")
        latents = latents.to(device, torch.float32)
        y = torch.tensor(labels, device=device)

        def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, **extra) -> object:
            output = self.transformer(x.to(dtype), t, y, **extra)
            return output.sample if hasattr(output, "sample") else output

        network.config = self.transformer.network.config  # its routing, for "path_drop"
        predict = guided_prediction(network, y, guidance, null_label=self.transformer.config.num_classes)

        times = torch.linspace(0, end, steps + 1)
        if shift > 0:
            times = shift * times / (1 + (shift - 1) * times)
        self.scheduler.set_timesteps(sigmas=(1 - times[:-1]).tolist(), device=device)
        self.scheduler.sigmas[-1] = 1 - times[-1]  # diffusers ends at data
        grid = times[:-1].tolist()
        self._interrupt = False
        with self.progress_bar(total=steps) as bar:
            for step, (time, timestep) in enumerate(zip(grid, self.scheduler.timesteps, strict=True)):
                if self._interrupt:
                    break
                still = step < guidance.still_steps
                velocity = torch.zeros_like(latents) if still else predict(latents, time)
                # The scheduler's noise level falls, so the output that it expects is minus the velocity.
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                    latents = (callback_on_step_end(self, step, timestep, tensors) or {}).get("latents", latents)
                bar.update()

        images = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
