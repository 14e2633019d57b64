"""What a reader of the tables and the page calls rows, losses and cells."""

from vavae.frontier.grid import Cell, Grid, TokenizerCell

ROW_NAMES = {
    "dit": "DiT",
    "rectified-flow": "+ rectified flow",
    "batch": "+ batch × 4, learning rate × 2",
    "beta2": "+ AdamW β₂ 0.95",
    "lognorm": "+ logit-normal times",
    "direction": "+ velocity direction loss",
    "swiglu": "+ SwiGLU",
    "rmsnorm": "+ RMSNorm",
    "rope": "+ RoPE",
    "aligned": "+ patch 1, aligned tokenizer",
}
LOSS_NAMES = {
    "none": "no alignment",
    "full": "full",
    "no-mcos": "without mcos",
    "no-mdms": "without mdms",
    "no-margin": "without margins",
}


def shown_name(grid: Grid, cell: Cell) -> str:
    """`d 16, none`, or `M/2 on d 16, none: + RMSNorm` for a row of Table 1; with its seed where there are several."""
    if isinstance(cell, TokenizerCell):
        parts = [f"d {cell.dimension}", cell.teacher]
        parts += [LOSS_NAMES[cell.loss]] if cell.loss not in ("full", "none") else []
        parts += [f"seed {cell.seed}"] if len({each.seed for each in grid.tokenizers}) > 1 else []
        return ", ".join(parts)
    row = next((ROW_NAMES[row] for row, each in grid.ladder() if each == cell), "")
    return f"{cell.size} on {shown_name(grid, cell.tokenizer)}{f': {row}' if row else ''}"
