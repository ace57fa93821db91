"""``mapsave completion bash|zsh|fish``."""

import click

from mapsave.cli import output
from mapsave.cli.options import Globals, LocalCommand, pass_globals

_BASH = """\
# Completion of mapsave for bash 4.4 or later.
_mapsave() {
    local -a lines
    mapfile -t lines < <("$1" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" \\
        2>/dev/null)
    COMPREPLY=("${lines[@]:1}")
    case ${lines[0]-} in
    file) compopt -o default ;;
    dir) compopt -o dirnames ;;
    esac
}
complete -F _mapsave mapsave
"""
_ZSH = """\
#compdef mapsave
# Completion of mapsave for zsh.
_mapsave() {
    local line
    local -a lines values shown
    lines=("${(@f)$("${words[1]}" __complete zsh "${(@)words[1,CURRENT]}" 2>/dev/null)}")
    case ${lines[1]} in
    file) _files; return ;;
    dir) _files -/; return ;;
    esac
    for line in "${(@)lines[2,-1]}"; do
        values+=("${line%%$'\\t'*}")
        shown+=("${line/$'\\t'/  -- }")
    done
    compadd -l -d shown -a values
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _mapsave "$@"
else
    compdef _mapsave mapsave
fi
"""
_FISH = """\
# Completion of mapsave for fish 3.4 or later.
function __mapsave_complete
    set -l token (commandline -ct)
    set -l lines (mapsave __complete fish (commandline -opc) "$token" 2>/dev/null)
    switch "$lines[1]"
        case file dir
            __fish_complete_path "$token"
        case '*'
            printf '%s\\n' $lines[2..]
    end
end
complete -c mapsave -f -a '(__mapsave_complete)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@click.command("completion", cls=LocalCommand)
@click.argument("shell", type=click.Choice(tuple(SCRIPTS)))
@pass_globals
def command(_: Globals, /, shell: str) -> None:
    """Print a script with which the shell completes commands, options and names.

    \b
    bash: mapsave completion bash > /etc/bash_completion.d/mapsave
          or in ~/.bashrc: eval "$(mapsave completion bash)"
    zsh:  mapsave completion zsh > DIRECTORY/_mapsave, a directory of $fpath
    fish: mapsave completion fish > ~/.config/fish/completions/mapsave.fish
    """
    output.say(SCRIPTS[shell])
