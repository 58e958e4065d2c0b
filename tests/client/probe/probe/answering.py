"""A client app that answers honestly, or as the question tells it to misbehave."""

from __future__ import annotations

import os
import signal

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from client.app import app as honest
from probe.tampers import Arrays

PATIENT = "SYN-H1-0007"


class Misbehaving(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        told = message.content.config_records["study"].get("behave", "honest")
        if told == "raise":
            raise RuntimeError(f"/data/site/{PATIENT}.h5 is damaged")
        if told == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if told == "leave":
            os._exit(0)
        reply = honest(message, context)
        if told == "extra key":
            Arrays(reply.content)[PATIENT] = np.zeros(1, np.float32)
        if told == "not a number":
            record = Arrays(reply.content)
            name = next(iter(record))
            record[name] = np.full_like(record[name], np.nan)
        if told == "patient as metric":
            reply.content.metric_records["metrics"][PATIENT] = 1.0
        if told == "text":
            reply.content["notes"] = ConfigRecord({"text": PATIENT})
        if told == "address":
            reply.metadata.__dict__["_group_id"] = PATIENT
        return reply


app = Misbehaving()
