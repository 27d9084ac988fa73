//! `bake`: definitions as buildx reads them, and builds of several targets.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::builds::{docker, json_file, shows, whelk};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, Output, Program, eventually};

/// Files of a case and the words of the command.
type Case = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const HCL: &str = r#"
variable "TAG" { default = "latest" }
variable "LIST" { type = list(string) }
variable "COUNT" {
  type = number
  default = 2
  description = "how many"
}
variable "FLAG" { default = true }
REGISTRY = "example.com/${TAG}"

function "tag" {
  params = [name]
  variadic_params = rest
  result = "${REGISTRY}/${name}:${join("-", concat([TAG], rest))}"
}

group "default" { targets = ["app", "tests"] }
group "tests" {
  targets = ["unit", "each"]
  description = "all tests"
}

target "_common" {
  args = { A = "1", B = FLAG ? "yes" : "no", EMPTY = null }
  labels = { "org.label" = "${"$"}{x}" }
  pull = true
}

target "app" {
  inherits = ["_common"]
  description = "the program"
  context = "./dir//app"
  dockerfile = "x.Dockerfile"
  tags = [tag("app"), tag("app", "a", "b"), ""]
  args = { A = 2, V = upper(try(NOTHING, TAG)) }
  contexts = { base = "target:unit", src = "../src" }
  cache-from = ["a:1,b:2", { type = "local", src = "x" }]
  cache-to = ["type=local,dest=x"]
  output = ["type=docker", "out", { type = "oci", dest = "x.tar" }]
  secret = ["id=k,src=key", { id = "e", env = "HOME" }]
  attest = ["type=provenance,mode=max", { type = "sbom" }]
  platforms = ["linux/amd64", "linux/arm64", "linux/amd64"]
  no-cache-filter = ["a", "b", "a"]
  ulimits = ["nofile=1:2"]
  annotations = ["index:a=b"]
  extra-hosts = { h = "1.2.3.4" }
  entitlements = ["network.host"]
  network = "none"
  shm-size = "64m"
  target = "stage"
}

target "unit" {
  dockerfile-inline = <<-EOT
    FROM busybox
    RUN echo $${HOME} ${COUNT}
  EOT
  tags = [for name in ["a", "b"]: "${name}:${COUNT + 1}"]
}

target "each" {
  name = "each-${os}-${replace(v, ".", "-")}"
  matrix = {
    os = ["linux", "bsd"]
    v = ["1.0", "2"]
  }
  inherits = ["_common"]
  args = { OS = os, V = v, ALL = join(",", [for x in try([for y in LIST: y], []): "<${x}>"]) }
  tags = target.unit.tags
}
"#;

const FUNCTIONS: &str = r#"
target "default" {
  args = {
    md5 = md5("a")
    sha1 = sha1("a")
    host = join(" ", [cidrhost("10.1.2.3/8", 258), cidrhost("fd00::/64", -1), cidrhost("10.0.0.0/30", -4)])
    mask = join(" ", [cidrnetmask("172.16.0.0/12"), cidrnetmask("1.2.3.4/32")])
    subnet = join(" ", [cidrsubnet("10.0.0.0/8", 8, 2), cidrsubnet("fd00::/48", 16, 162), cidrsubnet("1.0.0.0/8", 0, 0)])
    subnets = join(" ", cidrsubnets("10.1.0.0/16", 4, 4, 8, 4))
    none = join(" ", cidrsubnets("10.1.0.0/16"))
    csv = jsonencode(csvdecode("a,b\r\n1,\"x\"\"y,\"\n\n,2\n"))
    uuid = join(" ", [uuidv5("dns", "example.com"), uuidv5("url", "x"), uuidv5("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "y")])
    random = "${length(regexall("^[0-9a-f]{8}-[0-9a-f]{4}-4", uuidv4()))} ${uuidv4() == uuidv4()}"
    bcrypt = "${substr(bcrypt("x"), 0, 7)} ${substr(bcrypt("x", 5), 0, 7)} ${strlen(bcrypt("x", 4))}"
  }
}
"#;

const COMPOSE: &str = r#"
x-args: &args { SHARED: "1" }
services:
  db.x:
    build: ./db
  app:
    image: myapp:${TAG:-1}
    environment: { E: from-service }
    build:
      context: ./dir
      args: { <<: *args, A: "${HOME:+set}", E: , NOPE: }
      additional_contexts: [ "base=service:db.x", "src=./src" ]
      labels: [ "a=b", "c" ]
      cache_from: [ "type=local,src=x" ]
      extra_hosts: [ "h:1.2.3.4", "i=::1" ]
      ulimits: { nproc: { soft: 1, hard: 2 } }
      shm_size: 64m
      secrets: [ s, { source: t } ]
      tags: [ "t:1" ]
      network: host
      target: final
      no_cache: true
      provenance: mode=max
      x-bake:
        tags: [ "x:1" ]
        platforms: linux/amd64 linux/arm64
        output: type=docker
        no-cache-filter: [ a ]
secrets:
  s: { file: ./key }
  t: { environment: HOME }
"#;

/// Files of Compose that extend and include each other.
const PROJECTS: &[(&str, &str)] = &[
    (
        "compose.yaml",
        r#"
name: project
include:
  - sub/included.yaml
  - path: [ one.yaml, two.yaml ]
    project_directory: other
    env_file: sub/more.env
services:
  app:
    extends: { service: base, file: common/base.yaml }
    build:
      args: { X: "1", N: "${COMPOSE_PROJECT_NAME}", P: "$5 $", J: '${U:-{"a":1}}' }
      tags: [ "app:1" ]
  same: { extends: local, build: { tags: [ z ], extra_hosts: [ "h=2", "h:1" ] } }
  local:
    build:
      context: ./local
      args: { X: 0, Y: 1.0, F: 1e3, G: 0.00001, H: 12345678.9, O: 1_000, P: 0o17 }
      tags: [ y ]
      extra_hosts: [ "h:1", "i:[::1]" ]
      x-bake: { platforms: [ linux/amd64 ], contexts: { q: "service:app" } }
  profiled: { profiles: [ never ], build: { context: ., args: [ E, F, G ] }, env_file: [ sub/more.env, { path: none, required: false } ], environment: [ G=own ] }
  tagged: &tagged { build: { context: ., tags: !override [ q ] } }
  alias: { <<: *tagged, image: unused }
---
services:
  local: { build: { args: { X: second } } }
"#,
    ),
    (
        "sub/included.yaml",
        "services:\n  inc: {build: {context: ./ctx, additional_contexts: {q: ../rel, s: 'service:app'}}, image: 'i:${E}'}\n  \
         ext: {extends: {service: base, file: ../common/base.yaml}}\nsecrets: {key: {file: ./key}}\n",
    ),
    ("other/file", ""),
    ("sub/.env", "E=of-sub\n"),
    ("sub/more.env", "E: of-more\nF=\"f\\n${E}\"\nG=file\n"),
    (
        "one.yaml",
        "services:\n  two: {image: '${E}', build: {context: c, args: {A: '1', B: '2'}}}\n",
    ),
    ("two.yaml", "services:\n  two: {build: {args: !reset {}}}\n"),
    (
        "common/base.yaml",
        "services:\n  base: {extends: {service: root}, build: {context: ., args: {X: '0', Z: '9'}}}\n  \
         root: {build: {context: ./root, dockerfile: d, labels: [a=b]}}\n",
    ),
    (
        "reset.yaml",
        "services:\n  app: {build: {args: !override {NEW: '1'}, tags: !reset []}}\n  local: {build: !reset null, image: x}\n  \
         same: {build: {labels: {n: 1}}}\n",
    ),
];

const JSON: &str = r#"{
  "variable": {"T": {"default": "x"}},
  "group": {"g": {"targets": ["b"]}},
  "target": {
    "a": {"tags": ["a:${T}"], "args": {"N": 1, "B": true, "${T}": "$${y}"}},
    "b": [{"inherits": ["a"]}, {"labels": {"l": "${upper(T)}"}}]
  }
}"#;

/// Keys of blocks that occur twice.
const JSON_TWICE: &str = r#"{
  "target": {"default": {"tags": ["a"], "args": {"A": "1"}}, "default": {"args": {"B": "2"}}},
  "target": [{"other": {"target": "s"}}, {"default": [{"pull": true}, {"args": {"A": "3"}}]}]
}"#;

/// Whole numbers with more digits than doubles have.
const LARGE: &str = "target \"default\" { args = { A = 9223372036854775808, B = 1764511200123456789 + 1, \
    C = \"${18446744073709551615}\", D = 9007199254740993 * 3, E = -9223372036854775807, F = jsonencode([9007199254740993, 0.5]), \
    G = max(9007199254740993, 9007199254740992), H = parseint(\"7fffffffffffffff\", 16), I = 7 / 2, \
    J = 9007199254740993 == 9007199254740992, K = 9007199254740993.0, L = -9223372036854775808 } }";

/// Whole numbers of Compose with 64 bits.
const LARGE_IN_COMPOSE: &str = "services: {a: {build: {context: ., args: {S: 18446744073709551615, T: 9223372036854775808, \
    U: -9223372036854775808}}}}\n";

const CASES: &[Case] = &[
    (&[("docker-bake.hcl", HCL)], &["--print"]),
    (&[("compose.yaml", LARGE_IN_COMPOSE)], &["--print"]),
    (&[("docker-bake.hcl", LARGE)], &["--print"]),
    (&[("docker-bake.hcl", FUNCTIONS)], &["--print"]),
    (&[("docker-bake.hcl", HCL)], &["--print", "each", "app"]),
    (&[("docker-bake.hcl", HCL)], &["--print", "each-*"]),
    (
        &[("docker-bake.hcl", HCL)],
        &[
            "--print",
            "--set",
            "*.platform=linux/s390x",
            "--set",
            "app.tags+=more:1",
            "--set",
            "app.args.A=over=ridden",
            "--set",
            "unit.contexts.x=docker-image://y",
            "--set",
            "app.output=type=image,push=true",
            "--set",
            "app.secrets=id=new,src=key",
            "--no-cache",
            "--pull=false",
            "app",
            "unit",
        ],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &[
            "--print",
            "--set",
            "*.context=https://example.com/x.git",
            "--set",
            "*.dockerfile=cwd://f",
            "--set",
            "*.target=s",
            "--set",
            "*.call=outline",
            "--set",
            "*.shm-size=1g",
            "--set",
            "*.args.HOME",
            "--set",
            "*.args.NOT_SET",
            "--set",
            "*.labels.x=y",
            "--set",
            "*.extra-hosts.k=9.9.9.9",
            "--set",
            "*.contexts.base=",
            "--set",
            "*.annotations+=q=r",
            "--set",
            "*.entitlements=security.insecure",
            "--set",
            "*.pull=true",
            "--set",
            "*.no-cache=0",
            "--set",
            "*.cache-from+=a:1",
            "--set",
            "*.cache-to=type=local,dest=y",
            "--set",
            "*.secrets+=id=z,env=HOME",
            "--set",
            "*.output+=type=local,dest=o",
            "--set",
            "*.attest=type=sbom,disabled=true",
            "--set",
            "*.tags=",
            "app",
        ],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--print", "--push", "--load", "--sbom", "false", "app"],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--print", "--call", "targets,format=json", "unit"],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--print", "--push", "--sbom", "true", "unit"],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--print", "--provenance", "mode=min", "--check", "unit"],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--print", "--load", "app", "unit"],
    ),
    (&[("docker-bake.hcl", HCL)], &["--list", "targets"]),
    (&[("docker-bake.hcl", HCL)], &["--list", "variables"]),
    (&[("docker-bake.hcl", HCL)], &["--list-targets"]),
    (&[("docker-bake.hcl", HCL)], &["--list-variables"]),
    (
        &[("docker-bake.hcl", HCL)],
        &["--list", "type=variables,format=json"],
    ),
    (
        &[("docker-bake.hcl", HCL)],
        &["--list", "type=targets,format=json"],
    ),
    (&[("compose.yaml", COMPOSE)], &["--print"]),
    (
        &[("compose.yaml", COMPOSE), (".env", "TAG=2\nHOME_=x\n")],
        &["--print", "app"],
    ),
    (
        &[
            ("compose.yaml", COMPOSE),
            (
                "more.yml",
                "services:\n  app:\n    build:\n      args: {A: over}\n      tags: [more]\n  new:\n    build: {context: new}\n",
            ),
        ],
        &["--print", "-f", "compose.yaml", "-f", "more.yml"],
    ),
    (
        &[
            ("compose.yaml", COMPOSE),
            (
                "docker-bake.hcl",
                "target \"app\" {\n  args = { A = \"hcl\" }\n}\n",
            ),
        ],
        &["--print", "app"],
    ),
    (PROJECTS, &["--print"]),
    (
        PROJECTS,
        &["--print", "-f", "compose.yaml", "-f", "reset.yaml"],
    ),
    (&[("docker-bake.json", JSON)], &["--print", "g", "a"]),
    (
        &[
            (
                "docker-bake.hcl",
                "variable \"A\" { default = \"1\" }\ntarget \"default\" { args = { A = A } }\n",
            ),
            (
                "docker-bake.override.hcl",
                "variable \"A\" { default = \"2\" }\ntarget \"default\" { tags = [\"x\"] }\n",
            ),
        ],
        &["--print"],
    ),
    (
        &[("docker-bake.json", JSON_TWICE)],
        &["--print", "default", "other"],
    ),
    (&[("x", HCL)], &["--print", "-f", "x", "unit"]),
    (&[("x", COMPOSE)], &["--print", "-f", "x", "db_x"]),
    (&[("x", JSON)], &["--print", "-f", "x", "a"]),
];

/// A file, its content, the words of the command, and a part of what both programs say.
type Wrong = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const ERRORS: &[Wrong] = &[
    (
        "docker-bake.hcl",
        "target \"default\" {\n  tags = [\"a:${FOO}\"]\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:2,16-19: Unknown variable; There is no variable named \"FOO\".",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  tags = \"x\"\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:2,11-12: Unsuitable value type; Unsuitable value: list of string required",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  pull = \"maybe\"\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:2,11-16: Unsuitable value type; Unsuitable value: a bool is required",
    ),
    (
        "docker-bake.json",
        "{\"target\": {\"default\": {\"tags\": [\"a\"], \"tags\": [\"b\"]}}}",
        &["--print"],
        "ERROR: docker-bake.json:1,40-46: Duplicate argument; ",
    ),
    (
        "docker-bake.json",
        "{\"target\": {\"default\": {\"tags\": \"x\"}}}",
        &["--print"],
        "ERROR: docker-bake.json:1,33-36: Unsuitable value type; Unsuitable value: list of string required",
    ),
    (
        "docker-bake.json",
        "{\"target\": {\"default\": {\n\"tags\": [\"a:${NONE}\"]}}}",
        &["--print"],
        "ERROR: docker-bake.json:2,15-19: Unknown variable; There is no variable named \"NONE\".",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  args = { A = \"unterminated }\n  tags = [\"x\"]\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:2,31-3,1: Invalid multi-line string; Quoted strings may not be split over multiple lines.",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  tags = [\"x\"]\n  pull = true\n  tags = []\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:4,3-7: Attribute redefined; The argument \"tags\" was already set at docker-bake.hcl:2,3-7.",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  tags = [\"x\"]\n\ntarget \"b\" {\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:1,18-19: Unclosed configuration block; There is no closing brace for this block",
    ),
    (
        "docker-bake.hcl",
        "target \"a/b\" {}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:1,8-13: Invalid name; only \"[a-zA-Z0-9_-]+\" are allowed",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" { args = {x = nofn(1)} }\n",
        &["--print"],
        "ERROR: docker-bake.hcl:1,32-36: Call to unknown function; There is no function named \"nofn\".",
    ),
    (
        "docker-bake.hcl",
        "variable \"A\" {\n  default = \"x\"\n  validation {\n    condition = A == \"y\"\n    error_message = \"must be y\"\n  }\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:4,17-25: Validation failed; must be y",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print"],
        "ERROR: failed to find target default",
    ),
    (
        "docker-bake.hcl",
        "group \"default\" { targets = [\"default\"] }\n",
        &["--print"],
        "ERROR: failed to find target default",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "x*"],
        "ERROR: could not find any target matching \"x*\"",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a.foo=1", "a"],
        "ERROR: unknown key: foo",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a", "a"],
        "ERROR: invalid override key a, expected target.name",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a.tags", "a"],
        "ERROR: invalid override a.tags, expected target.name=value",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--list", "foo"],
        "ERROR: invalid list type \"foo\"",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" { contexts = {b = \"target:a\"} }\n",
        &["--print", "a"],
        "ERROR: target a cannot link to itself",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a.shm-size=bad", "a"],
        "ERROR: invalid value bad for membytes key shm-size",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a.annotations=x", "a"],
        "ERROR: invalid annotation \"x\", expected key=value",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--set", "a.extra-hosts=x", "a"],
        "ERROR: invalid format for extra-hosts, expecting extra-hosts.<hostname>=<ip>",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--progress", "bad", "a"],
        "ERROR: invalid progress mode bad",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" {}\n",
        &["--print", "--call", "check,ignorestatus=x", "a"],
        "ERROR: invalid ignorestatus print value: x",
    ),
    (
        "docker-bake.hcl",
        "target \"a\" { context = \"-\" }\n",
        &["--print", "a"],
        "ERROR: context from stdin not allowed in bake",
    ),
    (
        "compose.yaml",
        "services:\n  a:\n    build: {context: ., foo: 1}\n",
        &["--print"],
        "ERROR: services.a.build additional properties 'foo' not allowed",
    ),
    (
        "compose.yaml",
        "services:\n  a:\n    build: {context: \"${X:?no x}\"}\n",
        &["--print"],
        "ERROR: error while interpolating services.a.build.context: required variable X is missing a value: no x",
    ),
    (
        "compose.yaml",
        "services:\n  a:\n    build: {context: ., dockerfile: x, dockerfile_inline: FROM x}\n",
        &["--print"],
        "service \"a\" declares mutualy exclusive dockerfile and dockerfile_inline",
    ),
    (
        "compose.yaml",
        "services:\n  a:\n    build: {context: ., secrets: [nope]}\n",
        &["--print"],
        "service \"a\" refers to undefined build secret nope",
    ),
    (
        "docker-bake.hcl",
        "target \"default\" {\n  matrix = { i = [] }\n  name = \"x-${i}\"\n}\n",
        &["--print"],
        "failed to find target default",
    ),
    (
        "x.json",
        "",
        &["--print", "-f", "x.json"],
        "ERROR: couldn't find a bake definition",
    ),
    (
        "other",
        "x",
        &["--print"],
        "ERROR: couldn't find a bake definition",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., no_cache_filter: [x]}}\n",
        &["--print"],
        "ERROR: services.a.build additional properties 'no_cache_filter' not allowed",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: 5}\n",
        &["--print"],
        "ERROR: services.a.build: invalid type int for build",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., pull: 1}}\n",
        &["--print"],
        "ERROR: services.a.build.pull must be a boolean or string",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., pull: yes}}\n",
        &["--print", "none"],
        "WARNING: \"yes\" for boolean is not supported by YAML 1.2, please use `true`",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., tags: x}}\n",
        &["--print"],
        "ERROR: services.a.build.tags must be a array",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., args: {A: [1]}}}\n",
        &["--print"],
        "ERROR: services.a.build.args.A must be a boolean, null, number or string",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., secrets: [s]}}\nsecrets: {s: {external: true}}\n",
        &["--print"],
        "ERROR: failed to parse compose file: unsupported external secret",
    ),
    (
        "compose.yaml",
        "services:\n  a: {extends: {service: b}}\n  b: {extends: {service: a}}\n",
        &["--print"],
        "ERROR: Circular reference:\n  ",
    ),
    (
        "compose.yaml",
        "services:\n  a: {extends: {service: b, file: none.yaml}}\n",
        &["--print"],
        "ERROR: open none.yaml: no such file or directory",
    ),
    (
        "compose.yaml",
        "services:\n  a: {extends: b}\n",
        &["--print"],
        "service \"b\" not found",
    ),
    (
        "compose.yaml",
        "include: [compose.yaml]\nservices:\n  a: {build: .}\n",
        &["--print"],
        "ERROR: include cycle detected:",
    ),
    (
        "compose.yaml",
        "include: x\nservices:\n  a: {build: .}\n",
        &["--print"],
        "ERROR: `include` must be a list",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., additional_contexts: {b: \"service:n\"}}}\n",
        &["--print"],
        "ERROR: failed to parse compose file: service \"a\" declares unknown service \"n\" as additional contexts b",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., secrets: [s]}}\n",
        &["--print"],
        "ERROR: failed to parse compose file: service \"a\" refers to undefined build secret s: invalid compose project",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: ., secrets: [s]}}\nsecrets: {s: {}}\n",
        &["--print"],
        "ERROR: failed to parse compose file: secret \"s\" must declare either `file` or `environment`: invalid compose project",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: .}, env_file: none}\n",
        &["--print"],
        "ERROR: env file none not found",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: \"${A!x}\"}}\n",
        &["--print"],
        "ERROR: invalid interpolation format for services.a.build.context.\nYou may need to escape any $ with another $.\n${A!x}",
    ),
    (
        "compose.yaml",
        "services:\n  p: {provider: {type: x}}\n",
        &["--print"],
        "ERROR: failed to parse compose file: service \"p\" has neither an image nor a build context specified: invalid compose project",
    ),
    (
        "compose.yaml",
        "services:\n  a: {build: {context: \"x$NOT_SET\"}}\n",
        &["--print", "none"],
        "WARNING: The \"NOT_SET\" variable is not set. Defaulting to a blank string.",
    ),
];

/// A file in HCL, the words of the command, and a part of what only whelk says.
const OWN_ERRORS: &[(&str, &[&str], &str)] = &[
    (
        "target \"default\" {\n  tags = [\n}\n",
        &["--print"],
        "ERROR: docker-bake.hcl:3,1-1: Invalid syntax; ",
    ),
    (
        "variable \"A\" { default = B }\nvariable \"B\" { default = A }\n",
        &["--print"],
        "variable cycle not allowed for",
    ),
    (
        "target \"default\" { args = {x = rsadecrypt(\"\", \"\")} }\n",
        &["--print"],
        "The function \"rsadecrypt\" is not available in this version of whelk.",
    ),
    (
        "target \"default\" { args = {x = -9223372036854775809} }\n",
        &["--print"],
        "Invalid number; whole numbers of more than 64 bits",
    ),
    (
        "target \"default\" { args = {x = 123456789012345678.5} }\n",
        &["--print"],
        "Invalid number; numbers with a fraction and more than 15 digits",
    ),
    (
        "target \"default\" { tagz = [] }\n",
        &["--print"],
        "WARNING: docker-bake.hcl: target default: tagz is ignored: there is no such attribute",
    ),
    (
        "target \"default\" {}\n",
        &["--allow", "foo"],
        "unknown entitlement key \"foo\"",
    ),
];

fn prepare(engine: &Engine, files: &[(&str, &str)]) -> std::path::PathBuf {
    let directory = engine.scratch("case");
    let inner = directory.join("inner");
    let _ = fs::remove_dir_all(&inner);
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("key"), "secret").unwrap();
    for (name, content) in files {
        let path = inner.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    inner
}

fn bake(engine: &Engine, program: Program, directory: &Path, words: &[&str]) -> Output {
    let env = [("TERM", "dumb"), ("BUILDX_BAKE_ENTITLEMENTS_FS", "0")];
    let cli = engine.cli(program).with_env(&env).in_directory(directory);
    cli.run(&[&["buildx", "bake"], words].concat())
}

/// Sorts the targets of groups: buildx combines a matrix in another order each time. Leaves out what buildx writes about former flags to
/// its standard output.
fn ordered(text: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else {
        let lines = text.lines().filter(|line| !line.starts_with("Flag --"));
        return lines.collect::<Vec<_>>().join("\n");
    };
    let groups = value.get_mut("group").and_then(Value::as_object_mut);
    for (_, group) in groups.into_iter().flatten() {
        if let Some(targets) = group["targets"].as_array_mut() {
            targets.sort_by_key(ToString::to_string);
        }
    }
    format!("{value:#}")
}

#[test]
fn targets_are_those_of_buildx() {
    let engine = Engine::without_images(&[]);
    for (files, words) in CASES {
        let directory = prepare(&engine, files);
        let shown = |program| ordered(&bake(&engine, program, &directory, words).ok());
        assert_eq!(shown(Program::Whelk), shown(Program::Docker), "{words:?}");
    }
    let directory = prepare(&engine, &[("docker-bake.hcl", HCL)]);
    let warned = bake(&engine, Program::Whelk, &directory, &["--list-targets"]).err();
    let expected = "Flag --list-targets has been deprecated, list-targets is deprecated, use list=targets instead";
    assert!(warned.contains(expected), "{warned}");
    // Variables of the environment have the types of their defaults.
    for env in [
        [("TAG", "env"), ("COUNT", "7")],
        [("LIST", "a,\"b,c\""), ("FLAG", "false")],
        [("LIST_JSON", "[\"x\"]"), ("FLAG", "0")],
    ] {
        let shown = |program| {
            let cli = engine.cli(program).with_env(&env).in_directory(&directory);
            ordered(&cli.run(&["buildx", "bake", "--print"]).ok())
        };
        assert_eq!(shown(Program::Whelk), shown(Program::Docker), "{env:?}");
    }
    // From the standard input.
    let cli = |program| engine.cli(program).in_directory(&directory);
    let fed = |program| {
        let words = ["buildx", "bake", "--print", "-f", "-", "b"];
        cli(program).feed(&words, JSON.as_bytes()).ok()
    };
    assert_eq!(fed(Program::Whelk), fed(Program::Docker));
}

#[test]
fn errors_have_the_places_of_buildx() {
    let engine = Engine::without_images(&[]);
    // What both say, from the place on.
    for &(file, content, words, expected) in ERRORS {
        let directory = prepare(&engine, &[(file, content)]);
        for program in [Program::Whelk, Program::Docker] {
            let output = bake(&engine, program, &directory, words);
            assert_eq!(output.code, 1, "{program:?} {words:?}: {}", output.err());
            let shown = output.err();
            assert!(shown.contains(expected), "{program:?}: {expected}: {shown}");
            if content.contains("FOO") {
                shows(
                    &shown,
                    &[
                        "docker-bake.hcl:2\n--------------------\n   1 |     target \"default\" {\n   2 | >>>   tags = [\"a:${FOO}\"]\n",
                    ],
                );
            }
        }
    }
    // Our own words.
    for &(content, words, expected) in OWN_ERRORS {
        let directory = prepare(&engine, &[("docker-bake.hcl", content)]);
        let output = bake(&engine, Program::Whelk, &directory, words);
        assert!(
            output.err().contains(expected),
            "{expected}: {}",
            output.err()
        );
    }
}

#[test]
fn files_outside_are_read_with_consent() {
    let engine = Engine::without_images(&[]);
    let directory = prepare(
        &engine,
        &[
            (
                "compose.yaml",
                "services:\n  a: {extends: {service: b, file: ../outer.yaml}}\n",
            ),
            ("../outer.yaml", "services:\n  b: {build: dir}\n"),
            ("link.yaml", "include: [pipe]\n"),
        ],
    );
    let run = |words: &[&str]| {
        let cli = whelk(&engine).in_directory(&directory);
        cli.run(&[&["bake", "--print"], words].concat())
    };
    let refused = run(&[]);
    assert_eq!(refused.code, 1);
    shows(
        &refused.err(),
        &[
            "ERROR: open ../outer.yaml: it is outside of the working directory; pass --allow=fs.read=../outer.yaml to read it",
        ],
    );
    let allowed = run(&["--allow", "fs.read=.."]).ok();
    shows(&allowed, &["\"context\": \"../dir\""]);
    // A pipe is not waited for.
    let mut mkfifo = std::process::Command::new("mkfifo");
    assert!(
        mkfifo
            .arg(directory.join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let refused = run(&["-f", "link.yaml"]);
    shows(&refused.err(), &["ERROR: open pipe: not a regular file"]);
}

const PROJECT: &str = r#"
variable "WHAT" { default = "base" }
group "default" { targets = ["top", "each"] }
target "base" {
  dockerfile-inline = "FROM busybox\nRUN echo ${WHAT} > /base\n"
  labels = { made = "by-bake" }
}
target "top" {
  contexts = { parent = "target:base", files = "files" }
  dockerfile-inline = "FROM parent\nCOPY --from=files x /x\nRUN cat /base /x > /top\n"
  tags = ["top:1", "top:2"]
}
target "each" {
  name = "each-${n}"
  matrix = { n = ["1", "2"] }
  args = { N = n }
  dockerfile-inline = "FROM busybox\nARG N\nRUN echo $N > /n\n"
  tags = ["each:${n}"]
}
target "broken" {
  dockerfile = "broken.Dockerfile"
}
target "outside" {
  context = "/usr/share/doc"
  dockerfile-inline = "FROM busybox\n"
}
target "files" {
  dockerfile-inline = "FROM scratch\nCOPY docker-bake.hcl /\n"
  output = ["type=local,dest=out"]
}
"#;

#[test]
fn targets_are_built_together() {
    let engine = Engine::start();
    let directory = prepare(
        &engine,
        &[
            ("docker-bake.hcl", PROJECT),
            ("broken.Dockerfile", "FROM busybox\nRUN false\n"),
        ],
    );
    fs::create_dir(directory.join("files")).unwrap();
    fs::write(directory.join("files/x"), "file\n").unwrap();
    let run = |words: &[&str]| {
        let cli = whelk(&engine).in_directory(&directory);
        cli.run(&[&["bake", "--progress", "plain"], words].concat())
    };
    let metadata = directory.join("metadata");
    let shown = run(&["--metadata-file", metadata.to_str().unwrap()]).exits(0);
    shows(
        &shown,
        &[
            "[base 2/2] RUN echo base > /base",
            "RUN cat /base /x > /top",
            "[each-1 2/2] RUN echo 1 > /n",
            "[each-2] exporting to image",
        ],
    );
    let look = |image: &str, path: &str| {
        engine
            .whelk(&["run", "--rm", "--network", "none", image, "cat", path])
            .ok()
    };
    assert_eq!(look("top:1", "/top"), "base\nfile");
    assert_eq!(look("each:2", "/n"), "2");
    let labels = &engine.image("top:2")["Config"]["Labels"];
    assert_eq!(
        labels["made"], "by-bake",
        "those of the target that it stands on"
    );
    let told: Value = json_file(&metadata);
    let digest = |target: &str| told[target]["containerimage.digest"].clone();
    assert_eq!(digest("top"), engine.image("top:1")["Id"]);
    assert!(digest("base").is_null() && digest("each-1").is_string());
    assert!(told["top"]["buildx.build.ref"].is_string());
    for target in ["top", "base", "each-1"] {
        let provenance = &told[target]["buildx.build.provenance"];
        assert!(provenance["invocation"].is_object(), "{target}: {told}");
        assert!(provenance["metadata"].is_null(), "{target}: {told}");
    }
    // Again, all is cached; a changed argument is not.
    let shown = run(&[]).exits(0);
    shows(&shown, &["CACHED"]);
    let env = [("WHAT", "changed")];
    let cli = whelk(&engine).with_env(&env).in_directory(&directory);
    cli.run(&["buildx", "bake", "top", "--set", "top.tags=top:3"])
        .exits(0);
    assert_eq!(look("top:3", "/top"), "changed\nfile");
    run(&["files"]).exits(0);
    assert_eq!(
        fs::read_to_string(directory.join("out/docker-bake.hcl")).unwrap(),
        PROJECT
    );
    // One that fails ends all, and is named.
    let failed = run(&["broken", "each"]);
    assert_eq!(failed.code, 1);
    shows(
        &failed.err(),
        &[
            "broken.Dockerfile:2\n",
            "ERROR: target broken: failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
        ],
    );
    // What is outside is not read without consent.
    let refused = run(&["outside"]);
    assert_eq!(refused.code, 1);
    shows(
        &refused.err(),
        &[
            "Your build is requesting privileges for following possibly insecure capabilities:\n\n - Read access to path /usr/share/doc\n",
            "Pass \"--allow=fs.read=/usr/share/doc\" to grant requested privileges.",
            "ERROR: additional privileges requested",
        ],
    );
    let words = ["bake", "outside", "--print"];
    whelk(&engine).in_directory(&directory).run(&words).ok();
    run(&["--check", "top"]).exits(0);
    // Archives are not mixed.
    let refused = run(&["top", "base", "--set", "*.output=type=oci,dest=-"]);
    assert_eq!((refused.code, refused.stdout.len()), (1, 0));
    let expected =
        "ERROR: targets base and top: only one output can be written to the standard output";
    shows(&refused.err(), &[expected]);
    engine.has_no_builds();
}

#[test]
fn ctrl_c_ends_all_targets() {
    let engine = Engine::start();
    let file = "group \"default\" { targets = [\"one\", \"two\"] }\n\
        target \"one\" { dockerfile-inline = \"FROM busybox\\nRUN --network=none sleep 4711\" }\n\
        target \"two\" { dockerfile-inline = \"FROM busybox\\nRUN --network=none sleep 4712\" }\n";
    let directory = engine.scratch_with("ended", &[("docker-bake.hcl", file)]);
    let steps = || ["4711", "4712"].map(|time| with_command(&["sleep", time]));
    for client in [whelk(&engine), docker(&engine)] {
        let client = client.in_directory(&directory);
        let mut running = client.spawn(&["buildx", "bake"]);
        eventually("both steps to run", || {
            steps().iter().all(Option::is_some).then_some(())
        });
        running.signal(Signal::INT);
        assert_ne!(running.finish().code, 0);
        eventually("both steps to end", || {
            steps().iter().all(Option::is_none).then_some(())
        });
        engine.has_no_builds();
    }
}

#[test]
fn questions_are_answered_for_each_target() {
    let engine = Engine::start();
    let definition = "group \"default\" { targets = [\"a\", \"b\"] }\n\
        target \"a\" {\n description = \"first\"\n dockerfile-inline = \"FROM busybox\\n\"\n}\n\
        target \"b\" { dockerfile-inline = \"from busybox AS x\\n\" }\n";
    let directory = prepare(&engine, &[("docker-bake.hcl", definition)]);
    let checked = bake(&engine, Program::Whelk, &directory, &["--check"]);
    let shown = checked.out();
    shows(
        &shown,
        &[
            "a\nfirst\n\nCheck complete, no warnings found.\n",
            "\nb\n\nCheck complete, 1 warning",
        ],
    );
    assert_eq!(checked.code, 1, "{shown}");
    let json = bake(
        &engine,
        Program::Whelk,
        &directory,
        &["--call", "check,format=json"],
    );
    assert_eq!(json.code, 1);
    let told: Value = serde_json::from_str(&json.out()).unwrap();
    assert_eq!(told["target"]["a"]["build"]["description"], "first");
    let warnings = &told["target"]["b"]["check"]["warnings"];
    assert_eq!(warnings.as_array().unwrap().len(), 1);
    let ignored = ["--call", "check,ignorestatus=true"];
    bake(&engine, Program::Whelk, &directory, &ignored).exits(0);
    // The same questions, with the same answers and codes.
    for call in [
        "outline",
        "targets",
        "outline,format=json",
        "targets,format=json",
        "check,format=json",
    ] {
        let asked = |program| {
            let output = bake(&engine, program, &directory, &["--call", call]);
            let text = output.out();
            let json = serde_json::from_str(&text);
            (json.unwrap_or(Value::String(text)), output.code)
        };
        assert_eq!(asked(Program::Whelk), asked(Program::Docker), "{call}");
    }
}

#[test]
fn compose_files_are_built() {
    let engine = Engine::start();
    let compose = "services:\n  base:\n    build:\n      dockerfile_inline: |\n        FROM busybox\n        RUN echo composed > /base\n  \
        app:\n    image: app:${TAG}\n    build:\n      additional_contexts: {base: service:base}\n      secrets: [key]\n      dockerfile_inline: |\n        \
        FROM base\n        RUN --mount=type=secret,id=key cat /base /run/secrets/key > /all\nsecrets: {key: {file: key}}\n";
    let directory = prepare(&engine, &[("compose.yaml", compose), (".env", "TAG=9\n")]);
    let cli = whelk(&engine).in_directory(&directory);
    cli.run(&["buildx", "bake", "app"]).exits(0);
    let file = ["buildx", "bake", "--metadata-file", "/nonexistent/x", "app"];
    cli.run(&file)
        .refuses(1, "write /nonexistent/x: no such file");
    let look = ["run", "--rm", "--network", "none", "app:9", "cat", "/all"];
    assert_eq!(engine.whelk(&look).ok(), "composed\nsecret");
}
