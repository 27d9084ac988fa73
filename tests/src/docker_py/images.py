"""images.py SOCKET REGISTRY USER PASSWORD IMAGE: pushes an image to a registry that wants a login, and pulls it, with docker-py.

IMAGE has its name in the file /etc/which.
"""
import sys

import docker
from docker.errors import APIError, ImageNotFound, NotFound

socket, registry, user, password, image = sys.argv[1:]
client = docker.DockerClient(base_url="unix://" + socket, version="auto")
name = registry + "/team/app"


def refuses(kind, text, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"{call} {arguments} {options}")


def push(tag):
    """Returns the messages of a push."""
    return list(client.images.push(name, tag=tag, stream=True, decode=True))


# Names.
local = client.images.get(image)
for tag in "1", "2":
    assert local.tag(name, tag=tag)
assert set(client.images.get(local.id).tags) == {image, name + ":1", name + ":2"}

# Passwords.
errors = [message["error"] for message in push("1") if "error" in message]
assert len(errors) == 1 and errors[0].endswith("no basic auth credentials"), errors
refuses(APIError, "401", client.login, username=user, password="wrong", registry=registry)
status = client.login(username=user, password=password, registry=registry)["Status"]
assert status == "Login Succeeded", status

# A push.
messages = push("1")
assert not [message for message in messages if "error" in message], messages
statuses = {message.get("status") for message in messages}
assert f"The push refers to repository [{name}]" in statuses and "Pushed" in statuses, statuses
pushed = [message["aux"] for message in messages if "aux" in message][-1]
digest = pushed["Digest"]
assert pushed["Tag"] == "1" and digest.startswith("sha256:") and pushed["Size"] > 0, pushed
assert "Layer already exists" in {message.get("status") for message in push("2")}

# What the registry has.
data = client.images.get_registry_data(name + ":1")
assert data.id == digest and data.has_platform("linux/amd64") and not data.has_platform("linux/s390x")
described = client.api.inspect_distribution(name + ":2")["Descriptor"]
assert (described["digest"], described["size"]) == (digest, pushed["Size"]), described
refuses(APIError, "manifest unknown", client.api.inspect_distribution, name + ":none")

# Lists.
(listed,) = client.images.list(name=name)
assert listed.id == local.id and digest in listed.attrs["RepoDigests"][0], listed.attrs
assert not client.images.list(filters={"reference": registry + "/other"})
assert len(client.api.images(name=name, quiet=True)) == 1
assert isinstance(local.history(), list)
client.images.remove(local.id, force=True)
refuses(ImageNotFound, "No such image", client.images.get, name + ":1")
assert not client.images.list()

# Pulls.
messages = list(client.api.pull(name, tag="1", stream=True, decode=True))
statuses = [message["status"] for message in messages]
assert "Pull complete" in statuses and f"Digest: {digest}" in statuses, statuses
assert statuses[-1] == f"Status: Downloaded newer image for {name}:1", statuses
pulled = client.images.pull(name, tag="1")
assert pulled.id == local.id and pulled.attrs["RepoDigests"] == [f"{name}@{digest}"], pulled.attrs
assert data.pull().id == local.id
assert client.images.pull(f"{name}@{digest}").id == local.id
assert {tag for one in client.images.pull(name, all_tags=True) for tag in one.tags} == {name + ":1", name + ":2"}
refuses(NotFound, "manifest unknown", client.images.pull, name, tag="none")
output = client.containers.run(name + ":1", ["cat", "/etc/which"], remove=True, network_mode="none")
assert output.decode() == image, output

# An archive.
archive = b"".join(pulled.save(named=True))
client.images.remove(local.id, force=True)
(loaded,) = client.images.load(archive)
assert loaded.id == local.id and loaded.tags, loaded.tags
client.images.remove(local.id, force=True)
assert client.images.prune()["SpaceReclaimed"] == 0 and not client.images.list(all=True)
