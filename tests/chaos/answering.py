"""A malicious client app: the honest one, whose replies it changes as the question tells. Travels in a bundle."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from probe.tampers import tampered

from client.app import app as honest


class Malicious(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        reply = honest(message, context)
        told = str(message.content.config_records["study"].get("behave", ""))
        if told == "other-name":
            reply.content.config_records["capability"]["site"] = "H2"
        else:
            tampered(told, message, reply.content)
        return reply


app = Malicious()
