"""A stand-in for the Hugging Face Hub on 127.0.0.1: model repositories with commits, in memory."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

# Whose token every request carries: repositories without an owner are theirs.
USER = "lab"


class HubStandIn:
    """Repositories by id, each a list of (commit, {path: bytes}), newest last."""

    def __init__(self):
        self.repos, self.large_files, self.url = {}, {}, None
        self.app = FastAPI()
        self._routes()

    def files(self, repo, revision="main"):
        """(commit, files) of a repository at a revision, or `None`."""
        commits = self.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((entry for entry in commits if entry[0] == revision), None)

    def _routes(self):
        app = self.app

        @app.post("/api/repos/create")
        async def create(request: Request):
            asked = await request.json()
            repo = f"{asked.get('organization') or USER}/{asked['name']}"
            answer = {"name": repo, "url": f"{self.url}/{repo}"}
            if repo in self.repos:
                return Response(json.dumps({**answer, "error": "exists"}), status_code=409)
            self.repos[repo] = [(hashlib.sha1(repo.encode()).hexdigest(), {})]
            return answer

        @app.post("/api/validate-yaml")
        async def validate():
            return {"errors": [], "warnings": []}

        @app.post("/api/models/{owner}/{name}/preupload/main")
        async def preupload(request: Request):
            files = (await request.json())["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            return {
                "files": [
                    {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                    for file, mode in zip(files, modes, strict=True)
                ]
            }

        @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
        async def batch(request: Request):
            objects = (await request.json())["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{entry['oid']}", "header": {}}}
            return {"transfer": "basic", "objects": objects}

        @app.put("/lfs/{oid}")
        async def upload(oid: str, request: Request):
            self.large_files[oid] = await request.body()
            return Response()

        @app.post("/api/models/{owner}/{name}/commit/main")
        async def commit(owner: str, name: str, request: Request):
            repo, body = f"{owner}/{name}", await request.body()
            files = dict(self.files(repo)[1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.large_files[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = hashlib.sha1(body + str(len(self.repos[repo])).encode()).hexdigest()
            self.repos[repo].append((sha, files))
            url = f"{self.url}/{repo}/commit/{sha}"
            return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}

        @app.get("/api/models/{owner}/{name}")
        @app.get("/api/models/{owner}/{name}/revision/{revision}")
        async def info(owner: str, name: str, revision: str = "main"):
            found = self.files(f"{owner}/{name}", revision)
            if found is None:
                return _missing("RepoNotFound")
            siblings = [{"rfilename": path} for path in found[1]]
            repo = f"{owner}/{name}"
            return {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings, "private": False, "tags": []}

        @app.get("/api/models/{owner}/{name}/tree/{revision}")
        @app.get("/api/models/{owner}/{name}/tree/{revision}/{folder:path}")
        async def tree(owner: str, name: str, revision: str, folder: str = ""):
            found = self.files(f"{owner}/{name}", revision)
            paths = [path for path in (found[1] if found else ()) if path.startswith(folder)]
            if not paths:
                return _missing("EntryNotFound" if found else "RepoNotFound")
            return [
                {"type": "file", "path": path, "size": len(found[1][path]), "oid": _etag(found[1][path])}
                for path in paths
            ]

        @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
        async def resolve(owner: str, name: str, revision: str, path: str, request: Request):
            found = self.files(f"{owner}/{name}", revision)
            if found is None:
                return _missing("RepoNotFound")
            sha, files = found
            if path not in files:
                return _missing("EntryNotFound", sha)
            content, etag = files[path], f'"{_etag(files[path])}"'
            headers = {"ETag": etag, "X-Repo-Commit": sha, "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            if request.method == "HEAD":
                return Response(headers={**headers, "Content-Length": str(len(content))})
            return Response(content, headers=headers, media_type="application/octet-stream")


def _etag(content):
    return hashlib.sha256(content).hexdigest()


def _missing(code, sha=None):
    headers = {"X-Error-Code": code} | ({"X-Repo-Commit": sha} if sha else {})
    return Response(status_code=404, headers=headers)


@contextmanager
def hub_stand_in():
    """Serve a `HubStandIn` in a thread; its `url` is the endpoint."""
    hub = HubStandIn()
    listener = socket.create_server(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(hub.app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()


def run(script, hub, home, *arguments):
    """Run Python in a process that takes `hub` for the Hub and `home` for its cache; `arguments` are its sys.argv."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "dummy", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
