# Completion of whelk for bash: asks `whelk __complete` for what can follow.
_whelk() {
    local program=${COMP_WORDS[0]} line files lines=()
    type -P "$program" >/dev/null || program=whelk
    COMPREPLY=()
    mapfile -t lines < <(WHELK_WORDBREAKS=$COMP_WORDBREAKS "$program" __complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    for line in "${lines[@]}"; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
        else
            COMPREPLY+=("${line%%$'\t'*}")
        fi
    done
}
complete -F _whelk whelk
