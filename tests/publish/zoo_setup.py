"""Prepare a fresh server of the Zoo as the real one is: a workspace, the collection, a person.

Runs in the server's environment. Prints tokens: of an administrator, and of Ada, who may create
drafts and nothing else.
"""

import asyncio
import json
import os
import sys

PERMISSIONS = {"*": "r", "@": "r+", "reviewer-1": "rw+", "visitor-2": "r"}
ANIMALS = {"animal_adjective": ["brave", "calm", "kind"], "animal": ["lynx", "otter", "shark"]}


async def prepare(url: str) -> dict[str, str]:
    from hypha.core import UserInfo, UserPermission
    from hypha.core.auth import create_scope, generate_auth_token
    from hypha_rpc import connect_to_server

    root = await connect_to_server(
        {"server_url": url, "token": os.environ["HYPHA_ROOT_TOKEN"], "client_id": "root"}
    )
    for name in ("bioimage-io", "ws-user-ada"):
        workspace = {"name": name, "description": "test", "persistent": True}
        await root.create_workspace(workspace, overwrite=True)
    wanted = {"workspace": "bioimage-io", "permission": "admin", "expires_in": 3600}
    admin = await root.generate_token(wanted)
    curator = await connect_to_server(
        {"server_url": url, "token": admin, "workspace": "bioimage-io"}
    )
    artifacts = await curator.get_service("public/artifact-manager")
    await artifacts.create(
        alias="bioimage.io",
        type="collection",
        manifest={"name": "Zoo", "description": "test"},
        config={"permissions": PERMISSIONS, "id_parts": ANIMALS},
    )
    scope = create_scope({"ws-user-ada": UserPermission.admin}, current_workspace="ws-user-ada")
    ada = UserInfo(id="ada", email="ada@example.org", roles=[], is_anonymous=False, scope=scope)
    return {"admin": admin, "ada": await generate_auth_token(ada, 3600)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(prepare(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # its connections would hold it
