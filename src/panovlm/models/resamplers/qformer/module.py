"""The network of the Q-Former resampler."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from panovlm.models.resamplers.qformer.recipe import (
    MAX_QUERY_TOKENS,
    TOKEN_TYPES,
    VOCABULARY,
    QFormerSettings,
)


class QFormerResampler(nn.Module):
    """Learned queries that gather a view's tokens through a BERT decoder with cross-attention.

    After "BLIP-2" (Li et al., 2023), but the queries go through BERT's embedding layer, which adds
    positions and normalises, and see only themselves and earlier queries. BERT's word table and
    pooler are never used; they are here because its checkpoints hold them.
    """

    def __init__(
        self, settings: QFormerSettings, *, vision_dim: int, latent_dimension: int
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=vision_dim,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            intermediate_size=4 * vision_dim,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            max_position_embeddings=MAX_QUERY_TOKENS,
            type_vocab_size=TOKEN_TYPES,
            is_decoder=True,
            add_cross_attention=True,
            use_cache=False,
        )
        self.query = nn.Parameter(torch.empty(1, settings.num_query_tokens, vision_dim))
        nn.init.normal_(self.query, std=config.initializer_range)
        self.bert = BertModel(config)
        self.proj = nn.Linear(vision_dim, latent_dimension)
        embeddings = self.bert.embeddings
        if embeddings.position_ids.is_meta:  # no checkpoint holds these two constants
            positions = torch.arange(MAX_QUERY_TOKENS, device="cpu").unsqueeze(0)
            embeddings.position_ids = nn.Buffer(positions, persistent=False)
            embeddings.token_type_ids = nn.Buffer(torch.zeros_like(positions), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Gather tokens ``[B·V, S, Dv]`` in ``[B·V, Q, D]``, Q the number of queries."""
        queries = self.query.expand(len(tokens), -1, -1)
        read = self.bert(inputs_embeds=queries, encoder_hidden_states=tokens)
        return self.proj(read.last_hidden_state)
