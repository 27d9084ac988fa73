# Completion of whelk for fish: asks `whelk __complete` for what can follow.
function __whelk_complete
    for line in (whelk __complete (commandline -cp) 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c whelk -f -a '(__whelk_complete)'
