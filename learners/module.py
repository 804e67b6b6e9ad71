"""What RLlib wants where other algorithms have a neural network: nothing is in it."""

from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule


class PlaceholderModule(TorchRLModule):
    """Stands in an RLModuleSpec and is never built.

    The language model is no RLModule: DeepSpeed holds it, spread over the learners, and vLLM in
    the env runners.
    """
