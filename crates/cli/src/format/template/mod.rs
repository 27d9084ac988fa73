//! Docker's Go types for the templates of `--format`. [`whelk_gotemplate`] executes them.

mod methods;
mod types;

use serde::Serialize;
use serde_json::Value;
pub(crate) use whelk_gotemplate::{Error, Mode, Template, Typed};

use crate::{Failure, Outcome};

/// Creates a value of a type of Docker's client.
pub(crate) fn typed(ty: &'static str, json: Value) -> Typed {
    Typed::new(&types::DOCKER, ty, json)
}

/// Converts an object of this client to the JSON that templates are executed on.
pub(crate) fn json(object: &impl Serialize) -> Outcome<Value> {
    serde_json::to_value(object).map_err(|error| Failure::new(error.to_string()))
}

/// Converts a template's error to a failure with an exit code and a prefix.
pub(crate) fn failure(error: &Error, code: u8, what: &str) -> Failure {
    Failure::with_code(code, format!("{what}{error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn execute(template: &str, value: &Typed, mode: Mode) -> String {
        Template::parse(template)
            .and_then(|template| template.execute(value, mode))
            .unwrap_or_else(|error| error.to_string())
    }

    /// What Docker 28 prints for the same settings.
    #[test]
    fn typed_values_print_as_in_go() {
        let container = typed(
            "container.InspectResponse",
            json!({
                "Id": "abc", "Args": null, "RestartCount": 0, "State": {"Status": "exited", "Pid": 0, "ExitCode": 3},
                "HostConfig": {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}, "NetworkMode": "bridge", "Memory": 0, "ShmSize": 67108864,
                    "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, "Ulimits": [{"Name": "nofile", "Hard": 20, "Soft": 10}],
                    "LogConfig": {"Type": "json-file", "Config": {}}, "PidsLimit": null, "OomKillDisable": false, "CapAdd": null, "Dns": ["1.1.1.1"]},
                "Config": {"Labels": {"a.b": "c"}, "Env": ["A=1"], "Volumes": null, "Entrypoint": null, "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 30_000_000_000u64}},
                "Mounts": [{"Type": "tmpfs", "Destination": "/t", "RW": true}],
                "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/udp": null}, "IPAddress": "", "Networks": {"bridge": {"IPAddress": "10.0.0.2"}}},
            }),
        );
        for (template, expected) in [
            (
                "{{.HostConfig.RestartPolicy}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.IsAlways}}",
                "{always 0} always true",
            ),
            (
                "{{json .HostConfig.RestartPolicy}}",
                r#"{"Name":"always","MaximumRetryCount":0}"#,
            ),
            (
                "{{printf \"%+v %#v\" .HostConfig.RestartPolicy .HostConfig.RestartPolicy}}",
                "{Name:always MaximumRetryCount:0} container.RestartPolicy{Name:\"always\", MaximumRetryCount:0}",
            ),
            (
                "{{.HostConfig.LogConfig}} {{.HostConfig.PortBindings}} {{.HostConfig.Ulimits}}",
                "{json-file map[]} map[80/tcp:[{127.0.0.1 }]] [nofile=10:20]",
            ),
            (
                "{{.HostConfig.PidsLimit}} {{.Config.Volumes}} {{.Config.Entrypoint}} {{.SizeRw}} {{.State.Health}} {{.Args}}",
                "<nil> map[] [] <nil> <nil> []",
            ),
            (
                "{{.ID}} {{.RestartCount}} {{.AppArmorProfile}}|{{.HostConfig.DNS}} {{.HostConfig.CPUShares}} {{.HostConfig.ConsoleSize}}",
                "abc 0 |[1.1.1.1] 0 []",
            ),
            (
                "{{.State}}",
                "{exited false false false false false 0 3    <nil>}",
            ),
            (
                "{{.Mounts}} {{.Config.Healthcheck}}",
                "[{tmpfs   /t   true }] {[CMD-SHELL true] 30s 0s 0s 0s 0}",
            ),
            (
                "{{eq .State.Pid 0}} {{lt .State.ExitCode 4}} {{.HostConfig.NetworkMode.IsPrivate}}",
                "true true true",
            ),
            (
                "{{range $p, $c := .NetworkSettings.Ports}}{{$p}}={{$p.Port}},{{$p.Proto}}:{{range $c}}{{.HostPort}}{{end}};{{end}}",
                "80/tcp=80,tcp:8080;81/udp=81,udp:;",
            ),
            (
                "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}} {{index .Config.Labels \"a.b\"}}|{{index .Config.Labels \"no\"}}|",
                "8080 c||",
            ),
            (
                "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}} {{.NetworkSettings.Networks.bridge.GwPriority}} {{.NetworkSettings.Networks.nosuch}}",
                "10.0.0.2 0 <no value>",
            ),
            (
                "{{.Id}}",
                "template: :1:2: executing \"\" at <.Id>: can't evaluate field Id in type container.InspectResponse",
            ),
            (
                "{{eq .State.Pid \"a\"}}",
                "template: :1:2: executing \"\" at <eq .State.Pid \"a\">: error calling eq: incompatible types for comparison: int and string",
            ),
            (
                "{{.State.Health.Status}}",
                "template: :1:8: executing \"\" at <.State.Health.Status>: nil pointer evaluating *container.Health.Status",
            ),
        ] {
            assert_eq!(
                execute(template, &container, Mode::Values),
                expected,
                "{template}"
            );
        }
        let network = typed(
            "network.Inspect",
            json!({"Name": "n", "Created": "2026-11-28T10:35:10.168261044Z", "IPAM": {"Driver": "default", "Options": null, "Config": [{"Subnet": "10.0.0.0/8", "AuxiliaryAddresses": {"a": "b"}}]}}),
        );
        assert_eq!(
            execute(
                "{{.Created}} {{.IPAM}} {{.Peers}} {{.ConfigFrom}}",
                &network,
                Mode::Values
            ),
            "2026-11-28 10:35:10.168261044 +0000 UTC {default map[] [{10.0.0.0/8   map[a:b]}]} [] {}"
        );
    }

    #[test]
    fn executes_on_table_rows_and_headings() {
        let row = typed(
            "*formatter.ContainerContext",
            json!({"Names": "one", "Labels": {"b": "2,3", "a": "1"}, "Platform": null}),
        );
        for (template, expected) in [
            (
                "{{.Labels}} {{.Label \"b\"}}|{{.Label \"no\"}}|",
                "a=1,b=2,3 2,3||",
            ),
            (
                "{{json .}}",
                r#"{"Labels":"a=1,b=2,3","Names":"one","Platform":null}"#,
            ),
            (
                "{{.Nope}}",
                "template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext",
            ),
        ] {
            assert_eq!(
                execute(template, &row, Mode::Values),
                expected,
                "{template}"
            );
        }
        let headings = typed("*formatter.ContainerContext", json!({"Names": "NAMES"}));
        assert_eq!(
            execute(
                "{{upper .Names}} {{json .Names}} {{truncate .Names 1}} {{.Label \"com.x.my-label_y\"}} {{.Nope}}",
                &headings,
                Mode::Headings
            ),
            "NAMES NAMES NAMES my label y <no value>"
        );
    }

    /// Rows are sorted by field and have labels as text also where another value contains them.
    #[test]
    fn nested_rows_are_encoded_as_rows() {
        let details = typed(
            "formatter.diskUsageContext",
            json!({
                "Images": null,
                "Volumes": [{"Name": "n", "Labels": {"b": "2", "a": "1"}, "Driver": "local"}],
                "BuildCache": [],
            }),
        );
        for (template, expected) in [
            (
                "{{json .}}",
                r#"{"Images":null,"Volumes":[{"Driver":"local","Labels":"a=1,b=2","Name":"n"}],"BuildCache":[]}"#,
            ),
            (
                "{{json .Volumes}}",
                r#"[{"Driver":"local","Labels":"a=1,b=2","Name":"n"}]"#,
            ),
            (
                "{{range .Volumes}}{{.Labels}} {{.Label \"b\"}}{{end}}",
                "a=1,b=2 2",
            ),
        ] {
            assert_eq!(
                execute(template, &details, Mode::Values),
                expected,
                "{template}"
            );
        }
    }
}
