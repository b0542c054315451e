"""TransE: a knowledge graph in which a relation is a step from its head to its tail.

Sources: Bordes et al., "Translating embeddings for modeling multi-relational data", NeurIPS 2013; asked for every
entity at once as in Lacroix et al., arXiv 1806.07297, section 2, instead of for one drawn wrong tail.
Shapes: B triples, E entities, R relations, D numbers of an embedding.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema, TripleSchema


class TransESettings(Architecture):
    """Embeddings of entities and relations.

    Attributes:
        embedding_size: Numbers for each entity and each relation.
    """

    TAKES = frozenset({"triples"})
    TASKS = frozenset({"link-prediction"})
    NOT_PRIVATE = (
        "layer 'entities' is compared with as a whole, so the loss of one triple moves the embedding of every entity "
        "outside the layer's own forward, where no per-record gradient is taken; no model of triples is private yet"
    )

    kind: Literal["transe"]
    embedding_size: int = Field(default=50, ge=1, le=2048)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Embeddings drawn as in Bordes et al., algorithm 1.

        Args:
            schema: With the names of the relations.
            num_outputs: Entities.
        """
        if not isinstance(schema, TripleSchema):
            raise TypeError(f"schema.kind={schema.kind!r}; expected 'triples'")
        return TransE(num_entities=num_outputs, num_relations=len(schema.relations), size=self.embedding_size)


class TransE(nn.Module):
    """The network; its outputs are logits of the tail."""

    def __init__(self, *, num_entities: int, num_relations: int, size: int) -> None:
        super().__init__()
        self.entities, self.relations = nn.Embedding(num_entities, size), nn.Embedding(num_relations, size)
        for embedding in (self.entities, self.relations):
            nn.init.uniform_(embedding.weight, -6 * size**-0.5, 6 * size**-0.5)
        with torch.no_grad():
            self.relations.weight /= self.relations.weight.norm(dim=1, keepdim=True)

    def forward(self, triples_B2: Tensor) -> Tensor:
        """For each triple and entity, minus the L2 distance of head plus relation from the entity, [B, E].

        Takes B x E numbers of memory, not B x E x D: the distances come from a matrix product.

        Args:
            triples_B2: Positions of head and relation; whole numbers, of any type.
        """
        heads, relations = triples_B2.long().unbind(dim=1)
        expected_BD = self.entities(heads) + self.relations(relations)
        return -torch.cdist(expected_BD, self.entities.weight, compute_mode="use_mm_for_euclid_dist")
