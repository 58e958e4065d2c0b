"""What lets two owners rely on each other: keys, certificates, audit logs and signed releases. Opens no socket."""
