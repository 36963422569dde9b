"""``python -m resmlp_mt.prepare`` turns a corpus into binarised data for fairseq, in one command.

    python -m resmlp_mt.prepare wmt14_en_de --output DIR
    python -m resmlp_mt.prepare local --from-dir DIR --src en --tgt de --output OUT

The steps and their order are in resmlp_mt/preparation/pipeline.py; docs/data.md explains them.
"""

import errno
import sys
from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.errors import UserError
from resmlp_mt.files import locked
from resmlp_mt.preparation.options import parse_args


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from resmlp_mt.preparation.binarize import folder_name
    from resmlp_mt.preparation.pipeline import Preparation

    try:
        preparation = Preparation(args)
        if args.dry_run:
            told = preparation.plan()
        else:
            taken = f"another run is using {args.output}: wait for it or use another --output"
            with locked(args.output / ".steps/lock", taken, "--output"):
                told = preparation.run()
    except (KeyboardInterrupt, SystemExit):  # of Ctrl-C, or of SIGTERM and SIGHUP
        print(
            "interrupted; the same command continues from the last finished step", file=sys.stderr
        )
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left for {args.output} ({error.strerror}): free some and run the same "
                "command again; finished steps are kept"
            ) from error
        raise UserError(f"{error.filename or args.output}: {error.strerror or error}") from error
    print(told)
    if args.dry_run:
        return
    folders = ":".join(f"{args.output}/{folder_name(copy)}" for copy in range(max(1, args.samples)))
    print(f"{folders}, {args.output}/spm.model and {args.output}/manifest.json are ready")


if __name__ == "__main__":
    main()
