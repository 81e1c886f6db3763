"""LoRA adapters, as peft writes them.

own = adapter(tmp_path / "own", base, seed=1)
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from blindmerge_client.models import load_model

__all__ = ["adapter"]


def adapter(folder: Path, base: Path, seed: int = 0, **options: Any) -> Path:
    """A random adapter.   options: of peft's LoraConfig."""
    options = {"r": 2, "lora_alpha": 6, "target_modules": ["query", "value"]} | options
    config: Any = LoraConfig
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(load_model(base), config(**options))
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
            elif parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.01 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder
