"""A small hub for tests: the part of the hub's language that its client library speaks, on this
machine, with faults to order."""

import hashlib, json, re, socket, struct, threading, time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    "A repository: its files, and what stands in the way."

    files: dict  # name -> bytes
    licence: str = "mit"
    gated: bool = False  # files are refused, the list is not
    private: bool = False  # everything is refused
    refs: tuple = ("main",)  # branches and tags that exist
    pin: str = ""  # the commit, if it is to be a certain one

    @property
    def commit(self) -> str:
        return (
            self.pin
            or hashlib.sha1(
                repr(sorted((k, hashlib.sha1(v).digest()) for k, v in self.files.items())).encode()
            ).hexdigest()
        )

    def large(self, name):
        return name.endswith((".safetensors", ".bin"))

    def oid(self, name):
        return hashlib.sha1(b"blob %d\0" % len(self.files[name]) + self.files[name]).hexdigest()

    def etag(self, name):
        return hashlib.sha256(self.files[name]).hexdigest() if self.large(name) else self.oid(name)


@dataclass
class Fault:
    "What goes wrong, with which requests, how often."

    path: str  # regular expression, searched in "METHOD /path"
    times: int = 10**9  # so often, then all is well
    status: int = 0  # answer with this
    headers: dict = field(default_factory=dict)
    text: str = ""  # body of that answer
    cut: int = -1  # close the connection after so many bytes of the body
    reset: bool = False  # and impolitely
    slow: float = 0  # bytes a second
    wrong: bool = False  # another last byte
    short: int = 0  # so many bytes too few, and announced so


def folder(path) -> dict:
    "Read a folder as a repository's files."
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(Path(path).rglob("*"))
        if p.is_file()
    }


class Hub:
    """The server, in two places as the real one is: the hub itself, and the store that large files
    are redirected to."""

    def __init__(self, **repos):
        self.repos, self.faults, self.log, self.lock = {}, [], [], threading.Lock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        for s in self.servers:
            s.daemon_threads = True
            threading.Thread(
                target=s.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True
            ).start()
        self.url, self.store = (f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)

    def add(self, name, files, **kw):
        self.repos[name] = Repo(files if isinstance(files, dict) else folder(files), **kw)
        return self.repos[name]

    def fault(self, path, **kw):
        self.faults.append(Fault(path, **kw))

    def calm(self):
        "Forget faults and what was asked."
        self.faults.clear()
        self.log.clear()

    def taken(self) -> Counter:
        "Count the files whose bodies were asked for."
        bodies = (
            re.fullmatch(r"GET (?:/store/[^/]+/[^/]+|/[^/]+/[^/]+/resolve/[^/]+)/(.+)", p)
            for p in self.log
        )
        return Counter(m[1] for m in bodies if m)

    def close(self):
        for s in self.servers:
            s.shutdown()
            s.server_close()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # or each body waits 40 ms for the headers to be acknowledged
        )

        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer()

        def do_HEAD(self):
            self.answer()

        def fault(self):
            with hub.lock:
                asked = f"{self.command} {unquote(self.path)}"
                hub.log.append(asked)
                for f in hub.faults:
                    if f.times > 0 and re.search(f.path, asked):
                        f.times -= 1
                        return f
            return Fault("")

        def send(self, status, body=b"", headers=None, fault=None):
            fault = fault or Fault("")
            start = 0
            if status == 200 and (m := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                start, status = int(m[1]), 206
            if fault.wrong:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault.short:
                body = body[: -fault.short]
            self.send_response(status)
            for k, v in {
                "Content-Length": len(body) - start,
                **(
                    {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
                    if status == 206
                    else {}
                ),
                **(headers or {}),
            }.items():
                self.send_header(k, str(v))
            self.end_headers()
            if self.command == "HEAD":
                return
            body = body[start:]
            if fault.cut >= 0:
                self.wfile.write(body[: fault.cut])
                self.wfile.flush()
                if fault.reset:
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                self.close_connection = True
                self.connection.close()
                return
            step = max(1, int(fault.slow / 20)) if fault.slow else len(body) or 1
            try:
                for i in range(0, len(body), step):
                    self.wfile.write(body[i : i + step])
                    if fault.slow:
                        time.sleep(0.05)
            except OSError:
                self.close_connection = True

        def refuse(self, status, code, text):
            self.send(
                status,
                json.dumps(dict(error=text)).encode(),
                {"X-Error-Code": code, "X-Error-Message": text, "Content-Type": "application/json"},
            )

        def answer(self):
            fault, path = self.fault(), unquote(urlsplit(self.path).path)
            if fault.status:
                return self.send(fault.status, fault.text.encode(), fault.headers)
            if m := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
                return self.send(200, hub.repos[m[1]].files[m[2]], fault=fault)
            m = re.fullmatch(
                r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path
            ) or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repo = hub.repos.get(m[1]) if m else None
            if repo is None or repo.private:
                return self.refuse(401 if repo else 404, "RepoNotFound", "Repository not found")
            if (m[2] or "main") not in (*repo.refs, repo.commit):
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {m[2]}")
            if path.startswith("/api/"):
                return self.listing(m[1], repo, fault)
            self.file(m[1], repo, m[3], fault)

        def listing(self, name, repo, fault):
            lfs = lambda n: (
                dict(lfs=dict(sha256=repo.etag(n), size=len(repo.files[n]), pointerSize=130))
                if repo.large(n)
                else {}
            )
            rows = [
                dict(rfilename=n, size=len(b), blobId=repo.oid(n), **lfs(n))
                for n, b in repo.files.items()
            ]
            data = dict(
                _id="0",
                id=name,
                modelId=name,
                sha=repo.commit,
                private=False,
                gated="auto" if repo.gated else False,
                siblings=rows,
                tags=[f"license:{repo.licence}"],
                cardData=dict(license=repo.licence),
            )
            self.send(200, json.dumps(data).encode(), {"Content-Type": "application/json"}, fault)

        def file(self, name, repo, file, fault):
            if repo.gated:
                return self.refuse(
                    403 if self.headers.get("Authorization") else 401,
                    "GatedRepo",
                    f"Access to model {name} is restricted.",
                )
            if file not in repo.files:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            head = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.etag(file)}"'}
            if not repo.large(file):
                return self.send(200, repo.files[file], head, fault)
            self.send(
                302,
                b"",
                {
                    **head,
                    "Location": f"{hub.store}/store/{name}/{file}",
                    "X-Linked-Size": len(repo.files[file]),
                    "X-Linked-Etag": f'"{repo.etag(file)}"',
                },
            )

    return Handler
