"""FedSA-LoRA (Guo et al., arXiv 2410.01463): of each adapter A is federated, which holds what devices have in common;
B, which is the device's own, stays, and so do the decoders."""

from tap_core.algorithms.fedper import FedPer
from tap_core.components import family, is_lora_a
from tap_core.names import ComponentName


class FedSA(FedPer):
    """Only A is shared."""

    def shares(self, component: ComponentName, tensor: str) -> bool:
        return family(component) != "decoder" and is_lora_a(tensor)
