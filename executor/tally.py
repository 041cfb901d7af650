"""What the routers chose in a run: how often each expert of each layer, over how many tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from executor.decoder import LayerWeights, ModelWeights
from hrm.errors import ModelError
from hrm.files import atomic_writer

__all__ = ["Tally"]


class Tally:
    """Counts choices where they are made; `hrm.routing` reads what `write` writes.

    What free seats are computed on with counts too: its experts are read like any other's.
    """

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}
        self.chosen: dict[int, torch.Tensor] = {}

    def listen_to(self, weights: ModelWeights) -> ModelWeights:
        """Return the same weights with routers whose choices are counted.

        Raises
        ------
        ModelError
            When there is no router.
        """
        layers = tuple(self._listen_to_layer(number, layer) for number, layer in enumerate(weights.layers))
        if not self.chosen:
            raise ModelError("--record-routing: this model has no router (leave it out)")
        return replace(weights, layers=layers)

    def _listen_to_layer(self, number: int, layer: LayerWeights) -> LayerWeights:
        if layer.router is None:
            return layer
        router = layer.router.weight
        self.tokens[number] = 0
        self.chosen[number] = torch.zeros(len(router), dtype=torch.int64, device=router.device)
        return replace(layer, router=replace(layer.router, listener=self._counter(number)))

    def _counter(self, number: int) -> Callable[[torch.Tensor], None]:
        def count(chosen: torch.Tensor) -> None:
            self.tokens[number] += len(chosen)
            self.chosen[number].add_(torch.bincount(chosen.flatten(), minlength=len(self.chosen[number])))

        return count

    def write(self, path: Path) -> None:
        """Write a JSON line for each layer that has a router: `layer`, `tokens`, and `chosen`, a count an expert."""
        with atomic_writer(path) as stream:
            for layer, chosen in self.chosen.items():
                line = {"layer": layer, "tokens": self.tokens[layer], "chosen": chosen.tolist()}
                stream.write(json.dumps(line) + "\n")
