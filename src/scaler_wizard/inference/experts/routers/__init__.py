"""Three routers of rising cost, how each is trained, and their files."""

from scaler_wizard.inference.experts.routers.early import train_early_router
from scaler_wizard.inference.experts.routers.files import load_router, router_files, save_router
from scaler_wizard.inference.experts.routers.probe import ContentStates, train_probe
from scaler_wizard.inference.experts.routers.rows import RouterRow
from scaler_wizard.inference.experts.routers.suffix import RouterTokens, router_tokens, train_suffix_router
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.inference.experts.routers.training import RouterTraining, logits_of

__all__ = [
    "ContentStates",
    "RouterRow",
    "RouterTokens",
    "RouterTraining",
    "TrainedRouter",
    "load_router",
    "logits_of",
    "router_files",
    "router_tokens",
    "save_router",
    "train_early_router",
    "train_probe",
    "train_suffix_router",
]
