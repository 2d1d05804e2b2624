"""An S3 server on loopback that counts its requests, and can be told to fail some of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import boto3
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

BUCKET = "bucket"
CLOSE = ("Connection", "close")
"""One request a connection: a server that is stopped is gone for all."""
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
"""moto takes any."""


@dataclass(frozen=True)
class Request:
    """One request, as S3 names it. `copies` is of which object, for a request that makes one of another."""

    method: str
    key: str
    query: dict[str, list[str]]
    copies: str

    @property
    def operation(self) -> str:
        """Of https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html, those that write."""
        match self.method:
            case "PUT":
                return "UploadPart" if "partNumber" in self.query else "PutObject"
            case "POST" if "uploads" in self.query:
                return "CreateMultipartUpload"
            case "POST" if "uploadId" in self.query:
                return "CompleteMultipartUpload"
            case "DELETE":
                return "AbortMultipartUpload" if "uploadId" in self.query else "DeleteObject"
        return self.method

    @property
    def name(self) -> str:
        """The key's last component."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    request: Request
    status: int

    @property
    def completes(self) -> bool:
        """Is there an object at the key by this?"""
        return self.status == 200 and self.request.operation in ("PutObject", "CompleteMultipartUpload")


Rule = Callable[[Request], int | None]
"""What happens to a request before it is carried out: nothing (None), or an error instead, of this status. A
rule that sleeps makes the answer slow."""


class S3Server:
    """moto behind a rule, on a port of its own; the objects stay when it is stopped and started again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.rule: Rule | None = None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: Any = None
        self.port = 0
        self.start()
        self.client.create_bucket(Bucket=BUCKET)
        self.answers.clear()

    def start(self) -> None:
        """On the port that it had before."""
        self._server = make_server(
            "127.0.0.1", self.port, self._answer, threaded=True, request_handler=_Quiet
        )
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    def uri(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    @property
    def client(self) -> Any:
        """Not Arrow's: an independent witness."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="witness",
            aws_secret_access_key="witness",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """All objects whose key begins so, by the rest of the key."""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {
            key.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
        }

    def empty(self) -> None:
        client = self.client
        for key in self.objects():
            client.delete_object(Bucket=BUCKET, Key=key)
        for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    def parts(self, key: str) -> dict[str, bytes]:
        return self.objects(f"{key}/part-")

    def uploads(self) -> list[str]:
        """Keys of uploads that were begun, and neither completed nor aborted."""
        return [u["Key"] for u in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    def count(self, operation: str, key: str = "") -> int:
        return sum(a.request.operation == operation and key in a.request.key for a in self.answers)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"],
            unquote(environ["PATH_INFO"]).removeprefix(f"/{BUCKET}").strip("/"),
            parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True),
            environ.get("HTTP_X_AMZ_COPY_SOURCE", ""),
        )
        status = self.rule(request) if self.rule is not None else None
        if status is not None:
            get_input_stream(environ).read()  # else the connection is reset, which is another fault
            self.answers.append(Answer(request, status))
            code = "SlowDown" if status == 503 else "InternalError"
            body = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
            start_response(f"{status} told to", [("Content-Length", str(len(body))), CLOSE])
            return [body]

        def start(line: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            self.answers.append(Answer(request, int(line.split()[0])))
            return start_response(line, [*headers, CLOSE], *rest)

        try:
            return self._app(environ, start)
        except OSError:  # the client died in the middle of what it sent
            start("400 cut short", [])
            return []


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass
