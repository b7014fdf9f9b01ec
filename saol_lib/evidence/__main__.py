"""`python -m saol_lib.evidence` writes README's generated blocks, results/README.md and results/paper/README.md anew.

`--check` compares them.

`python -m saol_lib.evidence report` writes results/report.html.
"""

import sys


def main(words: list[str]) -> str | None:
    if words == ["report"]:
        from saol_lib.evidence import report

        print(f"results/{report.write().name} is written")
        return None
    if words not in ([], ["--check"]):
        return f"python -m saol_lib.evidence does not know {' '.join(words)}; write --check, report or nothing"

    from saol_lib.evidence import readme

    return readme.main(check=bool(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
