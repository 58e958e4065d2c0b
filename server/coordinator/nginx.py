"""The proxy in front of the SuperLink: hospitals reach the fleet paths and the health check, nothing else."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from server.coordinator.home import Home, Settings

# Slow clients: a header must arrive whole within seconds, a body must keep flowing, and one address may hold only so
# many requests; connections that never send one are bounded by their number and closed by client_header_timeout.
_TEMPLATE = """\
# Written by modaltune-server from coordinator.toml; change that file, not this one.
daemon off;
pid "{{ pid }}";
error_log stderr warn;
worker_processes 2;
worker_rlimit_nofile 8192;
worker_shutdown_timeout 30s;  # an old worker after a reload

events {
    worker_connections 4096;
}

http {
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
    client_body_temp_path "{{ home }}/run/nginx/body";
    proxy_temp_path "{{ home }}/run/nginx/proxy";
    fastcgi_temp_path "{{ home }}/run/nginx/fastcgi";
    uwsgi_temp_path "{{ home }}/run/nginx/uwsgi";
    scgi_temp_path "{{ home }}/run/nginx/scgi";

    client_header_timeout 10s;
    client_body_timeout 20s;
    send_timeout 30s;
    keepalive_timeout 75s;
    reset_timedout_connection on;
    client_header_buffer_size 2k;
    large_client_header_buffers 4 8k;
    client_max_body_size 64m;
    limit_conn_zone $binary_remote_addr zone=address:1m;
    limit_conn address 128;
    limit_conn_status 429;

    upstream superlink {
        server {{ settings.superlink }};
        keepalive 16;
    }

    server {
        listen {{ listen }}:{{ settings.port }} ssl;
        server_name _;
        ssl_certificate "{{ certificate }}";
        ssl_certificate_key "{{ certificate_key }}";
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:1m;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_connect_timeout 5s;
        proxy_read_timeout 120s;
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 2;
        proxy_ssl_trusted_certificate "{{ ca }}";
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;

        location /v1/fleet/ {
            limit_except POST { deny all; }
            proxy_pass https://superlink/v1/fleet/;  # a path here: passed on as it was compared
        }
        location = /health {
            limit_except GET { deny all; }
            proxy_pass https://superlink/health;
        }
        location / {
            return 403;
        }
    }
}
"""


def nginx_conf(home: Home, settings: Settings) -> str:
    """The text of ``nginx.conf``."""
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_TEMPLATE)
    return template.render(
        home=home.folder,
        pid=home.nginx_pid,
        settings=settings,
        listen=f"[{settings.listen}]" if ":" in settings.listen else settings.listen,
        certificate=home.certificate,
        certificate_key=home.certificate_key,
        ca=home.ca_certificate,
    )
