"""A randomised fault campaign: ``python -m tests.campaign --seeds A-B``.

A seed is a guest, the options of its save and restore, and what goes wrong in the meantime; the
same seed gives the same run. Each run is judged by: the guest is alive in its former state, or
there is a committed image that restores with equal RAM; and never both.

    plan     what a seed stands for        kinds    the kinds of faults, and what each draws
    guests   who runs the guest            places   where the images go
    blows    how a command is hit          deeds    what others do while a command stands still
    damage   of journals and images        run      one seed from its beginning to its end
    judge    what must hold                report   lines, summary, processes side by side
"""
