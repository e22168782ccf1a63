"""Local server with the part of the protocol of the Hub that uploads and downloads need.

The server runs in a thread, keeps its files in memory, and can fail on request. The real huggingface_hub connects to
it, so that the tests check the requests that are actually sent.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub:
    """Server with its repositories and the requests that it received.

    Attributes:
        repos: `{name: {"private": bool, "branches": {branch: {path: bytes}}, "tags": {tag: commit}}}`.
        received: `(method, path, body)` of every request.
        failures: Requests that fail: a mapping from the beginning of "METHOD /path" to an HTTP status, or to "drop",
            which closes the connection.
    """

    def __init__(self, token):
        self.token = token
        self.repos, self.objects, self.received, self.failures = {}, {}, [], {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo, branch="main"):
        return self.repos[repo]["branches"][branch]


def commit_of(files):
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + files[path])
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *unused):
        pass

    def answer(self, status=200, content=b"", headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.split("?")[0])
        self.hub.received.append((self.command, path, body))
        for beginning, failure in self.hub.failures.items():
            if f"{self.command} {path}".startswith(beginning):
                if failure == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return None
                return self.answer(failure, {"error": "failure requested by the test"})
        if path.startswith("/lfs/"):
            self.hub.objects[path.rsplit("/", 1)[1]] = body
            return self.answer()
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if self.command == "POST" and not known and path != "/api/validate-yaml":
            return self.answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
        if self.command == "POST":
            return self.post(path, body)
        return self.get(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def post(self, path, body):
        if path == "/api/validate-yaml":
            return self.answer(content={"errors": [], "warnings": []})
        if path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields.get('organization') or 'me'}/{fields['name']}"
            exists = name in self.hub.repos
            if not exists:
                private = fields.get("private") or fields.get("visibility") == "private"
                self.hub.repos[name] = {"private": bool(private), "branches": {"main": {}}, "tags": {}}
            return self.answer(409 if exists else 200, {"url": f"{self.hub.endpoint}/{name}", "id": "0", "name": name})
        found = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/.]+?)(?:\.git)?/(preupload|info|commit|branch|tag)/(.*)", path
        )
        if not found or found[1] not in self.hub.repos:
            return self.answer(404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"})
        repo, what, rest = self.hub.repos[found[1]], found[2], found[3]
        return getattr(self, what)(found[1], repo, rest, body)

    def preupload(self, name, repo, revision, body):
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self.answer(content={"files": modes})

    def info(self, name, repo, rest, body):
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self.answer(content={"transfer": "basic", "objects": objects})

    def commit(self, name, repo, revision, body):
        if revision not in repo["branches"]:
            return self.answer(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        files = dict(repo["branches"][revision])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        repo["branches"][revision] = files
        oid = commit_of(files)
        return self.answer(content={"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def branch(self, name, repo, branch, body):
        repo["branches"].setdefault(branch, dict(repo["branches"]["main"]))
        self.answer(content={})

    def tag(self, name, repo, revision, body):
        tag = json.loads(body)["tag"]
        if tag in repo["tags"]:
            return self.answer(409, {"error": "Tag exists"})
        repo["tags"][tag] = revision
        return self.answer(content={})

    def refs(self, repo):
        branches = [{"name": name, "ref": f"refs/heads/{name}"} for name in repo["branches"]]
        tags = [{"name": name, "ref": f"refs/tags/{name}"} for name in repo["tags"]]
        commits = {"targetCommit": "0" * 40}
        self.answer(
            content={"branches": [b | commits for b in branches], "tags": [t | commits for t in tags], "converts": []}
        )

    def get(self, path):
        refs = re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path)
        if refs and refs[1] in self.hub.repos:
            return self.refs(self.hub.repos[refs[1]])
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+).*", path)
        if tree and tree[1] in self.hub.repos:  # huggingface_hub 1 requests this before it downloads a snapshot
            branches = self.hub.repos[tree[1]]["branches"]
            files = branches.get(tree[2]) or next(f for f in branches.values() if commit_of(f) == tree[2])
            rows = [{"type": "file", "path": one, "size": len(held), "oid": "0" * 40} for one, held in files.items()]
            return self.answer(content=rows)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.*))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path)
        name = (found or file or [None, None])[1]
        if name not in self.hub.repos:
            return self.answer(404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"})
        repo = self.hub.repos[name]
        if found:
            files = repo["branches"][found[2] or "main"]
            siblings = [{"rfilename": one} for one in files]
            content = {"id": name, "modelId": name, "sha": commit_of(files), "private": repo["private"]}
            return self.answer(
                content={**content, "siblings": siblings, "tags": [], "pipeline_tag": "image-classification"}
            )
        by_commit = {commit_of(files): files for files in repo["branches"].values()}
        files = repo["branches"].get(file[2]) or by_commit.get(file[2], {})
        if file[3] not in files:
            code = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_of(files)}
            return self.answer(404, {"error": "no file"}, code)
        content = files[file[3]]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit_of(files)})
