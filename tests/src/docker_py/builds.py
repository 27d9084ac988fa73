"""builds.py SOCKET: builds images with docker-py. The engine has the image busybox."""
import gzip
import io
import json
import os
import sys
import tarfile
import tempfile

import docker
from docker.errors import DockerException

client = docker.DockerClient(base_url="unix://" + sys.argv[1], version="auto")
place = tempfile.TemporaryDirectory()


def context(name, files):
    """Makes a directory with these files."""
    top = os.path.join(place.name, name)
    for path, text in files.items():
        path = os.path.join(top, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    return top


def build(dockerfile, **options):
    """Builds a Dockerfile without a context; returns the image and the output."""
    image, messages = client.images.build(fileobj=io.BytesIO(dockerfile.encode()), **options)
    return image, "".join(message.get("stream", "") for message in messages)


def fails(text, call):
    try:
        call()
    except DockerException as error:
        assert text in str(error), error
        return error
    raise AssertionError(text)


def output(image, *command):
    return client.containers.run(image, list(command), remove=True, network_mode="none").decode()


def archive(files):
    """Returns an archive of a context."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


# A Dockerfile, a tag, labels, arguments with and without a value.
image, text = build(
    "FROM busybox\nARG ONE\nARG NONE\nRUN echo \"$ONE ${NONE-unset}\" >/made\nLABEL of=file\nCMD cat /made\n",
    tag="py/app:1", labels={"by": "docker-py"}, buildargs={"ONE": "first", "NONE": None}, rm=True)
assert image.tags == ["py/app:1"] and image.labels == {"by": "docker-py", "of": "file"}, image.attrs
assert text.startswith("Step 1/6 : FROM busybox") and "Successfully tagged py/app:1" in text, text
assert output("py/app:1") == "first unset\n"
same, text = build(
    "FROM busybox\nARG ONE\nARG NONE\nRUN echo \"$ONE ${NONE-unset}\" >/made\nLABEL of=file\nCMD cat /made\n",
    labels={"by": "docker-py"}, buildargs={"ONE": "first", "NONE": None})
assert same.id == image.id and "Using cache" in text, text

# A directory with an ignore file, a Dockerfile in it and one outside, both compressed or not.
files = {"Dockerfile": "FROM busybox\nCOPY . /all\n", "keep": "kept", "drop": "dropped", ".dockerignore": "drop\n# a comment\n!keep\n"}
top = context("app", files)
outside = os.path.join(context("outside", {"Other": "FROM busybox\nCOPY keep /kept\nRUN cat /kept\n"}), "Other")
for compressed in False, True:
    image, _ = client.images.build(path=top, gzip=compressed)
    assert output(image.id, "sh", "-c", "cd /all && echo *") == "Dockerfile keep\n"
    image, messages = client.images.build(path=top, dockerfile=outside, gzip=compressed, nocache=True)
    assert "kept" in "".join(message.get("stream", "") for message in messages)
fails("non-existent", lambda: client.images.build(path=top, dockerfile="non-existent"))

# Archives, which may be compressed.
data = archive({"Dockerfile": "FROM busybox\nCOPY file /file\n", "file": "of an archive\n"})
for content, encoding in ((data, None), (gzip.compress(data), "gzip")):
    image, _ = client.images.build(fileobj=io.BytesIO(content), custom_context=True, encoding=encoding)
    assert output(image.id, "cat", "/file") == "of an archive\n"

# Targets and other settings of steps.
stages = "FROM busybox AS one\nRUN echo one >/which\nFROM busybox AS two\nRUN exit 9\n"
image, _ = build(stages, target="one")
assert output(image.id, "cat", "/which") == "one\n"
fails("target stage \"none\" could not be found", lambda: build(stages, target="none"))
_, text = build("FROM busybox\nRUN cat /etc/hosts\n", extra_hosts={"extra.test": "10.9.8.7"}, nocache=True)
assert "10.9.8.7\textra.test" in text, text
_, text = build("FROM busybox\nRUN ls /sys/class/net\n", network_mode="none", nocache=True)
assert "eth0" not in text, text
_, text = build("FROM busybox\nRUN df -k /dev/shm\n", shmsize=3 << 20, nocache=True)
assert " 3072 " in text, text
build("FROM busybox\nRUN true\n", container_limits={"memory": 64 << 20, "memswap": 96 << 20, "cpushares": 512}, nocache=True)
build("FROM busybox\nRUN true\n", platform="linux", forcerm=True)
fails("cannot parse platform specifier", lambda: build("FROM busybox\n", platform="no/platform/at/all"))
fails("squash", lambda: build("FROM busybox\n", squash=True))
image, text = build("FROM busybox\nRUN true\n", quiet=True)
assert image.id in text and "Step" not in text, text

# What a step prints, and how it fails.
error = fails("returned a non-zero code: 9", lambda: build(stages, target="two"))
log = list(error.build_log)
assert any("Step" in message.get("stream", "") for message in log), log
assert log[-1]["errorDetail"]["code"] == 9 and error.msg == log[-1]["error"], log
fails("unknown instruction", lambda: build("FROM busybox\nNONSENSE\n"))
fails("invalid reference format", lambda: build("FROM busybox\n", tag="UPPER//"))
decoded = list(client.api.build(fileobj=io.BytesIO(b"FROM busybox\n"), decode=True))
plain = b"".join(client.api.build(fileobj=io.BytesIO(b"FROM busybox\n")))
assert [json.loads(line) for line in plain.splitlines()] == decoded
assert any(message.get("aux", {}).get("ID") for message in decoded), decoded

# What is left of builds.
assert client.df()["BuildCache"]
# Images hold the layers of their steps.
client.images.prune(filters={"dangling": True})
assert client.api.prune_builds(all=True)["SpaceReclaimed"] > 0
assert not client.df()["BuildCache"]
assert not client.containers.list(all=True)
