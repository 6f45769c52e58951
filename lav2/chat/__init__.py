"""Conversations with a trained model, in the terminal and in the browser."""

from lav2.chat.conversation import Conversation, Exchange

__all__ = ["Conversation", "Exchange"]
