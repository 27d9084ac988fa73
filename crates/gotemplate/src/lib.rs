//! Go's text/template over JSON values with Go types.
//!
//! What a template prints depends on types that JSON does not have: the order of a struct's fields, zero
//! values, methods. A program therefore describes the Go types that its values have in the program that it
//! stands in for ([`Types`]); JSON of an unknown type has the types that Go's decoder chooses
//! ([`Typed::any`]).
//!
//! `lex` and `parse` build a syntax tree, `run` executes it with the functions of `functions`, and `print`
//! formats values as package `fmt` does. Errors have Go's texts.
//!
//! ```text
//! {{.A.B}}  {{json .}}  {{range .L}}…{{else}}…{{end}}  {{if eq .A "x"}}…{{end}}  {{with .A}}…{{end}}
//! {{$x := .A}}  {{.A | upper | printf "%-5s"}}  {{index .M "key"}}  {{- trimmed -}}  {{define "t"}}…{{end}}{{template "t" .}}
//! ```
//!
//! A template from elsewhere cannot exhaust stack or memory: the depth of actions and template calls, the
//! length of strings and of the output are bounded. It can run for a long time (`{{range 9999999999}}`).
#![forbid(unsafe_code)]

mod functions;
mod lex;
mod parse;
mod print;
mod run;
mod types;
mod value;

pub use types::{Fields, Kind, Method, Mode, Types};
pub use value::Typed;

/// Maximum length in bytes of the output, and of the strings that are passed to a function.
pub const MAX_TEXT: usize = 16 << 20;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    name: &'static str,
    text: String,
    parsed: parse::Parsed,
}

/// A parse or execution error with Go's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    /// Creates a parse error at an offset in the template.
    fn new(template: &str, at: usize, text: impl std::fmt::Display) -> Self {
        let line = template[..at.min(template.len())].matches('\n').count() + 1;
        Self(format!("{line}: {text}"))
    }
}

impl Template {
    /// Parses a template without a name.
    ///
    /// # Errors
    /// Returns an error if the template is invalid or nested too deeply.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::named("", text)
    }

    /// Parses a template with a name that appears in its errors.
    ///
    /// # Errors
    /// See [`parse`](Self::parse).
    pub fn named(name: &'static str, text: &str) -> Result<Self, Error> {
        match parse::parse(text) {
            Ok(parsed) => Ok(Self {
                name,
                text: text.to_owned(),
                parsed,
            }),
            Err(Error(text)) => Err(Error(format!("template: {name}:{text}"))),
        }
    }

    /// Executes the template on a value and returns the output.
    ///
    /// # Errors
    /// Returns an error if an action fails, or if a limit is exceeded.
    pub fn execute(&self, value: &Typed, mode: Mode) -> Result<String, Error> {
        let (text, outcome) = self.execute_until(value, mode);
        outcome.map(|()| text)
    }

    /// Like [`execute`](Self::execute), but also returns the output before an error.
    pub fn execute_until(&self, value: &Typed, mode: Mode) -> (String, Result<(), Error>) {
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
            .unwrap_or_else(|Error(text)| text)
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
    fn evaluates_fields_and_functions() {
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
    fn executes_ranges_and_conditions() {
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

    #[test]
    fn endless_templates_end() {
        let exceeded = "template: : exceeded maximum number of steps (1000000)";
        for template in [
            "{{range 999999999999}}{{end}}",
            "{{range 999999}}{{range 9}}{{.}}{{break}}{{end}}{{end}}",
        ] {
            assert_eq!(execute(template, &sample(), Mode::Values), exceeded);
        }
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

    #[track_caller]
    fn check_limit(template: &str, error: &str) {
        let text = execute(template, &Typed::any(Value::Null), Mode::Values);
        assert!(text.ends_with(error), "{}", &text[..text.len().min(200)]);
    }

    #[test]
    fn bounds_depth() {
        check_limit(
            "{{define \"t\"}}{{template \"t\"}}{{end}}{{template \"t\"}}",
            "exceeded maximum template depth (100)",
        );
        for (open, close) in [
            ("{{if 1}}", "{{end}}"),
            ("{{range 1}}", "{{end}}"),
            ("{{with 1}}", "{{end}}"),
            ("{{define \"t\"}}", "{{end}}"),
            ("{{if 0}}{{else if 1}}", "{{end}}"),
        ] {
            check_limit(
                &(open.repeat(100_000) + &close.repeat(100_000)),
                "exceeded maximum nesting depth (200)",
            );
        }
        let parentheses =
            |count: usize| format!("{{{{print {}1{}}}}}", "(".repeat(count), ")".repeat(count));
        check_limit(
            &parentheses(100_000),
            "exceeded maximum nesting depth (200)",
        );
        check_limit(&parentheses(199), "1");
        // Each call enters as many actions as the parser allows.
        let nested = "{{if 1}}".repeat(198) + "{{template \"t\"}}" + &"{{end}}".repeat(198);
        check_limit(
            &format!("{{{{define \"t\"}}}}{nested}{{{{end}}}}{{{{template \"t\"}}}}"),
            "exceeded maximum nesting depth (500)",
        );
    }

    #[test]
    fn bounds_memory() {
        check_limit(
            &format!("{{{{range 9999999999}}}}{}{{{{end}}}}", "x".repeat(1024)),
            "output exceeds 16777216 bytes",
        );
        check_limit(
            "{{$x := \"0123456789abcdef\"}}{{range 64}}{{$x = print $x $x}}{{end}}{{$x}}",
            "arguments exceed 16777216 bytes",
        );
        check_limit(
            "{{$x := \"0123456789abcdef\"}}{{range 10}}{{$x = print $x $x}}{{end}}{{join (split $x \"\") $x}}",
            "separators exceed 16777216 bytes",
        );
        check_limit("{{len (printf \"%.99999f|%99999d\" 1.5 1)}}", "65539");
        check_limit("{{range 9999999999}}{{break}}{{end}}ok", "ok");
    }
}
