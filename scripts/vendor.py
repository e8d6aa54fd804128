"""Brings the page's libraries into src/hermetic/web/static/vendor/, with their licences: `make vendor`.

The result is committed, so that neither a running server nor its build asks a registry for anything. Each package is
pinned by version and by the integrity that npm's registry states for it; to take a newer one change both here, run
this, and look at what `git diff` says.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).parent.parent / "src/hermetic/web/static/vendor"
LANGUAGES = [
    *("bash", "c", "cpp", "csharp", "css", "diff", "dockerfile", "go", "ini", "java", "javascript", "json", "kotlin"),
    *("lua", "makefile", "markdown", "nginx", "perl", "php", "powershell", "python", "ruby", "rust", "scala", "sql"),
    *("swift", "typescript", "xml", "yaml"),
]
"""Of some 190 those that agents write most. Each is loaded when a block names it."""


class Package(NamedTuple):
    name: str
    version: str
    integrity: str
    licence: str
    why: str
    files: dict[str, str]
    """Path in the package → path in vendor/."""


PACKAGES = [
    Package(
        "marked",
        "18.2.1",
        "sha512-ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA==",
        "MIT",
        "Markdown; its lexer gives each block with its source, which drawing while it streams needs",
        {"lib/marked.esm.js": "marked.js", "LICENSE": "marked.LICENSE"},
    ),
    Package(
        "dompurify",
        "3.4.18",
        "sha512-ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
        "MPL-2.0 OR Apache-2.0",
        "Sanitises what becomes markup, under Trusted Types",
        {"dist/purify.es.mjs": "dompurify.js", "LICENSE": "dompurify.LICENSE"},
    ),
    Package(
        "eventsource-parser",
        "4.1.3",
        "sha512-jZVIVilXZfAx6H20ZKKEj5dabbpD9ETmMj3uHsjMmgBzBHB6tsHrmdWB4mAiy3amtN6MOoVkfXRQu4wf1n88Rw==",
        "MIT",
        "Event streams over fetch: a browser's own EventSource hands over a burst in one task and hides heartbeats",
        {
            "dist/parse.js": "eventsource/parse.js",
            "dist/errors.js": "eventsource/errors.js",
            "LICENSE": "eventsource/LICENSE",
        },
    ),
    Package(
        "@highlightjs/cdn-assets",
        "11.12.0",
        "sha512-KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        "BSD-3-Clause",
        "Colours of code: the core, and each language as a module of its own",
        {"es/core.min.js": "highlight/core.js", "LICENSE": "highlight/LICENSE"}
        | {f"es/languages/{name}.min.js": f"highlight/languages/{name}.js" for name in LANGUAGES},
    ),
    Package(
        "@fontsource-variable/geist",
        "5.3.0",
        "sha512-j0m+vLQuG5XAYoHtGCVu0spvlGreR3EzpECUVzkFmI1mTVnAO38l/NEPDCFgZ177JxzYJCLSmTQibIiYPilGrA==",
        "OFL-1.1",
        "The page's letters: the same on every machine, one file for all weights",
        {"files/geist-latin-wght-normal.woff2": "geist.woff2", "LICENSE": "geist.LICENSE"},
    ),
    Package(
        "@fontsource-variable/geist-mono",
        "5.3.0",
        "sha512-vBbuwDEo9AkrqADMXOrlAR3DFcJi4/JxeuU43FoiQERnNwsfXNnvxvReZG02cQKmyk4DZkZdBZX3oTDvy2zBAw==",
        "OFL-1.1",
        "Commands and code",
        {"files/geist-mono-latin-wght-normal.woff2": "geist-mono.woff2", "LICENSE": "geist-mono.LICENSE"},
    ),
]


def main() -> int:
    if shutil.which("npm") is None:
        print("npm is not on the PATH.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "vendor"
        for package in PACKAGES:
            unpack(package, Path(scratch), made)
        (made / "README.md").write_text(readme())
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(made, TARGET)
    print(f"{sum(f.stat().st_size for f in TARGET.rglob('*') if f.is_file()):,} bytes in {TARGET}")
    return 0


def unpack(package: Package, scratch: Path, made: Path) -> None:
    """Raises `SystemExit` when the archive is another one than the one that was pinned."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", str(scratch)]
    said = subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True).stdout
    archive = scratch / said.strip().splitlines()[-1]
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise SystemExit(f"{package.name}: the archive is sha512-{digest}, pinned is {package.integrity}")
    with tarfile.open(archive) as tar:
        for source, name in package.files.items():
            member = tar.extractfile(f"package/{source}")
            assert member is not None, source
            data = member.read()
            if name.endswith(".js"):  # the maps are not here, and a browser with its tools open would ask for them
                data = re.sub(rb"\n//# sourceMappingURL=\S+\s*$", b"\n", data)
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def readme() -> str:
    rows = "\n".join(f"| {p.name} | {p.version} | {p.licence} | {p.why} |" for p in PACKAGES)
    return (
        "# Libraries of the page\n\nWritten by `make vendor` (scripts/vendor.py); do not edit. Each licence stands beside "
        f"its files.\n\n| package | version | licence | why |\n| --- | --- | --- | --- |\n{rows}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
