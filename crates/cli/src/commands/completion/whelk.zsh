#compdef whelk
# Completion of whelk for zsh: asks `whelk __complete` for what can follow.
_whelk() {
    local -a lines values
    local line
    lines=("${(@f)$(${(Q)words[1]} __complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    for line in $lines; do
        [[ $line == :files ]] && continue
        line=${line//:/\\:}
        values+=("${line/$'\t'/:}")
    done
    (( $#values )) && _describe whelk values
    [[ ${lines[(r):files]} == :files ]] && _files
}
if [[ $funcstack[1] == _whelk ]]; then _whelk "$@"; else compdef _whelk whelk; fi
