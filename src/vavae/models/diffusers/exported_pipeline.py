"""Class-conditional images from a LightningDiT exported by vavae; needs torch and diffusers."""

# mypy: ignore-errors
# (diffusers makes attributes of its classes at run time)

from collections.abc import Mapping, Sequence

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class LightningDiTPipeline(DiffusionPipeline):
    """Labels -> images.

    Args:
        transformer: Predicts the velocity of straight paths from noise (time 0) to data (time 1).
        vae: Decodes latents; its configuration has their mean and standard deviation per channel, or a shift and a
            factor for all channels.
        scheduler: Takes the steps; its noise level runs from 1 to 0.
        sampling: Defaults: steps (grid points, one more than evaluations), shift, guidance_scale, guidance_start,
            guidance_stop, guidance_channels.
        class_names: Names of the labels, by number.
    """

    model_cpu_offload_seq = "transformer->vae"

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

    def labels_of(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the classes with these names."""
        numbers = {name: int(number) for number, name in self.config.class_names.items()}
        return [numbers[name] for name in names]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int] | Sequence[str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_start: float | None = None,
        guidance_stop: float | None = None,
        guidance_channels: int | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image per label. None takes the folder's default.

        Args:
            class_labels: Numbers or names of classes; the number of classes itself means no label.
            num_inference_steps: Number of Euler steps.
            guidance_scale: Classifier-free guidance scale; 1 turns guidance off.
            guidance_start: Guidance acts from this time on (0 noise, 1 data).
            guidance_stop: Guidance acts up to this time.
            guidance_channels: Guide only this many leading channels; 0 guides all.
            shift: Time shift s: grid t' = s·t / (1 + (s − 1)·t); 0 or 1 leaves the grid even.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            generator: Source of the noise.
            latents: (B, C, h, w) standard normal noise to start from, instead of noise from `generator`.
            output_type: "pil", "np", "pt" (values in [0, 1]) or "latent" (normalized latents).
            return_dict: Return an `ImagePipelineOutput` instead of a tuple.
        """
        labels = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        labels = self.labels_of(labels) if labels and isinstance(labels[0], str) else labels
        defaults = self.config.sampling
        steps = num_inference_steps or defaults.get("steps", 250) - 1
        scale = defaults.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale
        start = defaults.get("guidance_start", 0.0) if guidance_start is None else guidance_start
        stop = defaults.get("guidance_stop", 1.0) if guidance_stop is None else guidance_stop
        channels = defaults.get("guidance_channels") if guidance_channels is None else guidance_channels
        shift = defaults.get("shift", 1.0) if shift is None else shift

        network = self.transformer.config
        device, dtype = self._execution_device, self.transformer.dtype
        side = network.latent_size
        trained = (side, side) if isinstance(side, int) else tuple(side)
        rows = trained[0] if height is None else height // self.factor
        columns = trained[1] if width is None else width // self.factor
        if latents is None:
            shape = (len(labels), network.latent_channels, rows, columns)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)
        y = torch.tensor(labels, device=device)
        no_label = torch.full_like(y, network.num_classes)

        times = torch.linspace(0, 1, steps + 1)
        if shift > 0:
            times = shift * times / (1 + (shift - 1) * times)
        self.scheduler.set_timesteps(sigmas=(1 - times[:-1]).tolist(), device=device)
        grid = times[:-1].tolist()
        # In float32, as the grid: 0.7 in float64 is larger than the grid point 0.7.
        start, stop = torch.tensor([start, stop], dtype=torch.float32).tolist()
        with self.progress_bar(total=steps) as bar:
            for time, timestep in zip(grid, self.scheduler.timesteps, strict=True):
                x = latents.to(dtype)
                t = torch.full((len(labels),), time, device=device, dtype=torch.float32)
                if scale != 1 and start <= time <= stop:
                    both = self.transformer(torch.cat((x, x)), torch.cat((t, t)), torch.cat((y, no_label))).sample
                    velocity, unconditional = both.float().chunk(2)
                    guided = slice(0, channels or None)
                    base = unconditional[:, guided]
                    velocity[:, guided] = base + scale * (velocity[:, guided] - base)
                else:
                    velocity = self.transformer(x, t, y).sample.float()
                # The scheduler's noise level falls, so the output that it expects is minus the velocity.
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                bar.update()

        if output_type == "latent":
            images = latents
        else:
            stored = self.vae.config
            std = torch.tensor(stored.latents_std or [1.0], device=device).view(1, -1, 1, 1) / stored.scaling_factor
            mean = torch.tensor(stored.latents_mean or [stored.shift_factor or 0.0], device=device).view(1, -1, 1, 1)
            images = self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample
            images = self.image_processor.postprocess(images.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
