//! Go's text templates over the engine's responses, for `--format`.
//!
//! `lex` and `parse` build a syntax tree, `run` executes it with the functions of `call` on the
//! values of `value`: JSON with the Go types (`types`) that Docker's client uses, which determine
//! what `print` outputs.
//!
//! ```text
//! {{.A.B}}  {{json .}}  {{range .L}}…{{else}}…{{end}}  {{if eq .A "x"}}…{{end}}  {{with .A}}…{{end}}
//! {{$x := .A}}  {{.A | upper | printf "%-5s"}}  {{index .M "key"}}  {{- trimmed -}}  {{define "t"}}…{{end}}{{template "t" .}}
//! ```

mod call;
mod lex;
mod parse;
mod print;
mod run;
mod types;
mod value;

pub(crate) use run::Mode;
pub(crate) use value::Typed;

use crate::Failure;

/// A parsed template.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    name: &'static str,
    text: String,
    parsed: parse::Parsed,
}

/// A parse or execution error with Go's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake(String);

impl Mistake {
    /// Creates a parse error at an offset in the template.
    fn new(template: &str, at: usize, text: impl std::fmt::Display) -> Self {
        let line = template[..at.min(template.len())].matches('\n').count() + 1;
        Self(format!("{line}: {text}"))
    }

    /// Converts to a failure with an exit code and a prefix.
    pub(crate) fn failure(self, code: u8, what: &str) -> Failure {
        Failure::with_code(code, format!("{what}{}", self.0))
    }
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, Mistake> {
        Self::named("", text)
    }

    /// Parses a template with a name that appears in its errors.
    pub(crate) fn named(name: &'static str, text: &str) -> Result<Self, Mistake> {
        match parse::parse(text) {
            Ok(parsed) => Ok(Self {
                name,
                text: text.to_owned(),
                parsed,
            }),
            Err(Mistake(text)) => Err(Mistake(format!("template: {name}:{text}"))),
        }
    }

    pub(crate) fn execute(&self, value: &Typed, mode: Mode) -> Result<String, Mistake> {
        let (text, outcome) = self.execute_until(value, mode);
        outcome.map(|()| text)
    }

    /// Like [`execute`](Self::execute), but also returns the output before an error.
    pub(crate) fn execute_until(&self, value: &Typed, mode: Mode) -> (String, Result<(), Mistake>) {
        run::run(self.name, &self.text, &self.parsed, value, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn execute(template: &str, value: &Typed, mode: Mode) -> String {
        Template::parse(template)
            .and_then(|template| template.execute(value, mode))
            .unwrap_or_else(|Mistake(text)| text)
    }

    fn sample() -> Typed {
        Typed::any(
            json!({"A": "x", "N": 5, "L": ["a", "b"], "M": {"k": "v", "a": "1"}, "E": [], "Z": null, "T": true, "O": {"P": {"Q": "deep"}}}),
        )
    }

    #[track_caller]
    fn check(template: &str, expected: &str) {
        assert_eq!(
            execute(template, &sample(), Mode::Values),
            expected,
            "{template}"
        );
    }

    #[test]
    fn fields_and_functions() {
        check("{{.A}}-{{.O.P.Q}}-{{(.O).P.Q}}", "x-deep-deep");
        check(
            "{{json .L}} {{.L}} {{.M}}",
            "[\"a\",\"b\"] [a b] map[a:1 k:v]",
        );
        check(
            "{{.Z}} {{.T}} {{.N}} {{.Nope}} {{.Nope.X}}",
            "<no value> true 5 <no value> <no value>",
        );
        check(
            "{{join .L \", \"}} {{upper .A}} {{.A | upper | printf \"%-3s|\"}}",
            "a, b X X  |",
        );
        check(
            "{{index .M \"k\"}} {{index .L 1}} {{len .L}} {{slice .A 0 1}}",
            "v b 2 x",
        );
        check(
            "{{(index .L 0)}}{{/* note */}}{{- /* note */ -}} {{`raw\\n`}}{{'a'}}",
            "araw\\n97",
        );
        check(
            "{{print 1 2 \"x\" 3 4}}|{{println \"a\" 1 \"b\"}}|{{html \"<a>\"}} {{urlquery \"a b\"}}",
            "1 2x3 4|a 1 b\n|&lt;a&gt; a+b",
        );
        check(
            "{{title \"hello world-x\"}}|{{pad \"\" 1 2}}|{{pad \"x\" 1 2}}|{{truncate \"abc\" 2}}|{{truncate \"ab\" 5}}|{{split \"a,b\" \",\"}}",
            "Hello World-X|| x  |ab|ab|[a b]",
        );
        check(
            "{{printf \"%5.2f %x %q %T %d %v %s %05d|%-4s|%+d %c %%\" 3.14159 255 \"a\" .A \"s\" true 1 42 \"ab\" 7 97}}",
            " 3.14 ff \"a\" string %!d(string=s) true %!s(int=1) 00042|ab  |+7 a %",
        );
        check(
            "{{printf \"%s\" 1 2}} {{printf \"%s %s\" .A}}",
            "%!s(int=1)%!(EXTRA int=2) x %!s(MISSING)",
        );
        check(
            "{{define \"t\"}}<{{.}}>{{end}}{{template \"t\" .A}}{{block \"b\" 1}}[{{.}}]{{end}}",
            "<x>[1]",
        );
    }

    #[test]
    fn control() {
        check("{{range .L}}<{{.}}>{{end}}", "<a><b>");
        check("{{range $i, $x := .L}}{{$i}}={{$x}} {{end}}", "0=a 1=b ");
        check("{{range $k, $v := .M}}{{$k}}:{{$v}};{{end}}", "a:1;k:v;");
        check(
            "{{range .E}}x{{else}}none{{end}}{{range 3}}{{.}}{{end}}",
            "none012",
        );
        check(
            "{{range .L}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}{{range .L}}{{.}}{{break}}{{end}}",
            "aa",
        );
        check(
            "{{if eq .A \"y\" \"x\"}}yes{{else}}no{{end}}{{if and .T (not .Z)}}!{{end}}{{or .Z .A}}",
            "yes!x",
        );
        check(
            "{{if .Z}}a{{else if gt (len .L) 1}}b{{else}}c{{end}}{{with .Z}}{{else with .A}}{{.}}{{end}}",
            "bx",
        );
        check("{{with .O.P}}{{.Q}}{{$.A}}{{end}}", "deepx");
        check("{{$v := .A}}{{range .L}}{{$v = .}}{{end}}{{$v}}", "b");
        check("a {{- .A -}} b {{-1}}", "axb -1");
    }

    #[test]
    fn errors_have_gos_texts() {
        for (template, text) in [
            ("{{.A", "template: :1: unclosed action"),
            ("x\n{{", "template: :2: unclosed action"),
            ("{{range .L}}", "template: :1: unexpected EOF"),
            ("{{end}}", "template: :1: unexpected {{end}}"),
            (
                "{{bogus .A}}",
                "template: :1: function \"bogus\" not defined",
            ),
            ("{{$x}}", "template: :1: undefined variable \"$x\""),
            ("{{}}", "template: :1: missing value for command"),
            (
                "{{.A.X}}",
                "template: :1:4: executing \"\" at <.A.X>: can't evaluate field X in type string",
            ),
            (
                "{{index .L 9}}",
                "template: :1:2: executing \"\" at <index .L 9>: error calling index: index out of range: 9",
            ),
            (
                "{{index .M 3}}",
                "template: :1:2: executing \"\" at <index .M 3>: error calling index: value has type int; should be string",
            ),
            (
                "{{eq .A 1}}",
                "template: :1:2: executing \"\" at <eq .A 1>: error calling eq: incompatible types for comparison: string and int",
            ),
            (
                "{{range .T}}{{end}}",
                "template: :1:8: executing \"\" at <.T>: range can't iterate over true",
            ),
            ("{{\"x}}", "template: :1: unterminated quoted string"),
        ] {
            check(template, text);
        }
    }

    /// What Docker 28 prints for the same settings.
    #[test]
    fn typed_values_print_as_in_go() {
        let container = Typed::new(
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
        let network = Typed::new(
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
    fn executes_on_untyped_json() {
        let raw = |template: &str| {
            execute(
                template,
                &Typed::any(json!({"Id": "x", "N": 3, "Z": null, "M": {}})),
                Mode::Raw,
            )
        };
        assert_eq!(raw("{{.Id}} {{.N}}"), "x 3");
        assert_eq!(
            raw("{{.M.Nope}}"),
            "template: :1:4: executing \"\" at <.M.Nope>: map has no entry for key \"Nope\""
        );
        assert_eq!(
            raw("{{.Z.Foo}}"),
            "template: :1:4: executing \"\" at <.Z.Foo>: nil pointer evaluating interface {}.Foo"
        );
    }

    #[test]
    fn executes_on_table_rows_and_headings() {
        let row = Typed::new(
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
        let headings = Typed::new("*formatter.ContainerContext", json!({"Names": "NAMES"}));
        assert_eq!(
            execute(
                "{{upper .Names}} {{json .Names}} {{truncate .Names 1}} {{.Label \"com.x.my-label_y\"}} {{.Nope}}",
                &headings,
                Mode::Headings
            ),
            "NAMES NAMES NAMES my label y <no value>"
        );
    }

    #[test]
    fn rejects_unbounded_recursion() {
        assert!(
            execute(
                "{{define \"t\"}}{{template \"t\"}}{{end}}{{template \"t\"}}",
                &Typed::any(Value::Null),
                Mode::Values
            )
            .contains("exceeded maximum template depth")
        );
    }
}
