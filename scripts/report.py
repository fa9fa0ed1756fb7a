"""Write a report about one or several runs from their files: a page of its own, and Markdown beside it.

    python scripts/report.py RUN [RUN …] [--output_file report.html]

RUN is a run directory or a folder that holds several, as the demo's. Runs may be going on, stopped or crashed.
"""

import _env  # noqa: F401

import argparse
from pathlib import Path

from genesis_hf.errors import UserError, report_user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output_file", help="default: report.html in the first RUN")
    arguments = parser.parse_args()
    output_file = Path(arguments.output_file or Path(arguments.runs[0]) / "report.html")
    if output_file.suffix != ".html":
        raise UserError(f"output_file {output_file}: its name must end with .html")

    from genesis_hf.report.material import collect
    from genesis_hf.report.pages import encodable, write_report
    from genesis_hf.report.sections import headlines

    material = collect(arguments.runs)
    path = write_report(material, output_file)
    print(encodable("\n".join(headlines(material))))
    print(f"report: {path}, {path.with_suffix('.md')}")


if __name__ == "__main__":
    with report_user_errors():
        main()
