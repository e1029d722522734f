"""Runs JAX's own test-suite on trn3 and on the CPU backend and compares them test by test.

    python tools/jax_conformance.py --jax path/to/jax [--dut cpu] [files ...]

`--jax` is JAX's source tree at the tag of the installed version (git clone --branch jax-v0.10.2
https://github.com/jax-ml/jax). Each test file gets a process of its own; one that dies or hangs is
charged to the test that was running and continues with the next. jax_conformance.toml says which
files mean nothing here, which tests are expected to differ, and why.

Prints a table by file and every difference; exits with 1 if one is not in the manifest, or if
something in the manifest no longer happens.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

_HERE = Path(__file__).parent
_MAX_DEATHS = 25  # of one test file's process, before the rest of the file is given up
_HANG_S = 150


@dataclasses.dataclass(frozen=True)
class Difference:
    """A test that fails on trn3 alone; `reason` is the manifest's, if it has it."""

    test: str
    outcome: str
    message: str
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A platform to run on. dut: what JAX's tests are told is the device under test; "" lets them
    see the platform's own name."""

    platform: str
    dut: str

    @property
    def name(self) -> str:
        return f"{self.platform}-as-{self.dut}" if self.dut else self.platform


def load_manifest() -> dict:
    return tomllib.loads((_HERE / "jax_conformance.toml").read_text())


def check_version(source: Path) -> None:
    """SystemExit unless `source` is the source tree of the installed JAX."""
    version = source / "jax" / "version.py"
    if not version.exists():
        sys.exit(f"{source} is not a JAX source tree: it has no jax/version.py")
    found = re.search(r'^_version = "([^"]+)"', version.read_text(), re.MULTILINE)
    if found is None or found[1] != jax.__version__:
        sys.exit(
            f"{source} is JAX {found[1] if found else '?'}, installed is {jax.__version__}; JAX's "
            f"tests only fit their own version: check out the tag jax-v{jax.__version__}"
        )


def test_files(source: Path, manifest: dict, wanted: list[str]) -> list[str]:
    """Names such as "array_test" or "pallas/ops_test"."""
    tests = source / "tests"
    every = sorted(str(p.relative_to(tests).with_suffix("")) for p in tests.glob("**/*_test.py"))
    if wanted:
        names = [name.removeprefix("tests/").removesuffix(".py") for name in wanted]
        if missing := set(names) - set(every):
            sys.exit(f"no such test file in {tests}: {', '.join(sorted(missing))}")
        return names
    out = [re.compile(pattern) for pattern in manifest["left_out"]]
    return [name for name in every if not any(pattern.fullmatch(name) for pattern in out)]


def _environment(run: Run, name: str, source: Path, results: Path, args, manifest) -> dict:
    devices = manifest["devices"].get(name, 8)
    return {
        **os.environ,
        "JAX_PLATFORMS": "trn3,cpu" if run.platform == "trn3" else run.platform,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_TRN3_TOPOLOGY": "trn3-core" if devices == 1 else "trn3-chip",
        "JAX_NUM_GENERATED_CASES": str(args.generated_cases),
        "JAX_SKIP_SLOW_TESTS": "1",
        "JAX_CONFORMANCE_SOURCE": str(source),
        "JAX_CONFORMANCE_RESULTS": str(results),
        "JAX_CONFORMANCE_DUT": run.dut,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")])),
    }


def _watch(process: subprocess.Popen, results: Path) -> int:
    """The exit code; a process whose results stop growing is killed."""
    size, since = -1, time.monotonic()
    while True:
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            now = results.stat().st_size if results.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > _HANG_S:
                process.kill()


def read_results(results: Path) -> dict[str, dict]:
    """The last word on each test, and "started" for one that a process died in."""
    tests: dict[str, dict] = {}
    if results.exists():
        for line in results.read_text().splitlines():
            record = json.loads(line)
            old = tests.get(record["test"], {}).get("outcome")
            if old != "failed":  # a tear-down that passes does not make good for the test
                tests[record["test"]] = record
    return tests


def run_file(run: Run, name: str, source: Path, args, manifest: dict) -> None:
    """Runs one test file on one platform, however often its process dies."""
    folder = args.out / run.name
    results = folder / (name.replace("/", "-") + ".jsonl")
    finished = results.with_suffix(".done")
    if finished.exists() and args.resume:
        return
    folder.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    finished.unlink(missing_ok=True)
    began = time.monotonic()
    # -P: the current directory, which has a `jax` too, stays out of sys.path.
    command = [sys.executable, "-P", "-m", "pytest", "-p", "jax_conformance_plugin", "-q", "-s"]
    command += ["-p", "no:cacheprovider", "-p", "no:timeout", "-W", "ignore", f"tests/{name}.py"]
    environment = _environment(run, name, source, results, args, manifest)
    with results.with_suffix(".log").open("w") as log:
        for _ in range(_MAX_DEATHS):
            process = subprocess.Popen(
                command,
                cwd=source,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            if (code := _watch(process, results)) in (0, 1, 2, 5):  # pytest's own
                break
            message = f"the process ended with code {code}"
            for test, record in read_results(results).items():
                if record["outcome"] == "started":
                    failure = {"test": test, "outcome": "failed", "message": message}
                    with results.open("a") as file:
                        file.write(json.dumps(failure) + "\n")
    finished.write_text(f"{time.monotonic() - began:.0f}")
    print(f"{run.name} {name}: {dict(outcomes(read_results(results)))}", file=sys.stderr)


def outcomes(tests: dict[str, dict]) -> Counter:
    return Counter(record["outcome"] for record in tests.values())


def expectations(name: str, run: Run, manifest: dict) -> list[dict]:
    """The manifest's entries for a file and a run."""
    return [
        entry
        for entry in manifest["expected"]
        if re.fullmatch(entry["file"], name) and entry.get("dut", run.dut) == run.dut
    ]


def meets(entry: dict, test: str, message: str) -> bool:
    return bool(re.search(entry["test"], test) and re.search(entry.get("error", ""), message))


def differences(cpu: dict, ours: dict, expected: list[dict]) -> list[Difference]:
    """Tests of a file that fail on trn3, or are missing, and do not fail on the CPU."""
    found = []
    for test in cpu | ours:
        there = cpu.get(test, {"outcome": "missing"})["outcome"]
        record = ours.get(test, {"outcome": "missing"})
        if there in ("failed", "started") or record["outcome"] in ("passed", "skipped"):
            continue
        if there == "skipped" and record["outcome"] == "missing":
            continue
        short, message = test.partition("::")[2], record.get("message", "")
        reasons = [entry["reason"] for entry in expected if meets(entry, short, message)]
        found.append(Difference(short, record["outcome"], message, next(iter(reasons), None)))
    return found


def report(names: list[str], run: Run, args, manifest: dict) -> dict:
    """Reads the results of both platforms into one dictionary, which is also the JSON output."""
    files, passing, kept = {}, 0, 0
    for name in names:
        file = name.replace("/", "-") + ".jsonl"
        cpu, ours = (read_results(args.out / n / file) for n in ("cpu", run.name))
        expected = expectations(name, run, manifest)
        found = differences(cpu, ours, expected)
        both = [t for t, r in cpu.items() if r["outcome"] == "passed"]
        both = [t for t in both if ours.get(t, {}).get("outcome") != "skipped"]
        passing += len(both)
        kept += sum(ours.get(t, {}).get("outcome") == "passed" for t in both)
        files[name] = {
            "cpu": dict(outcomes(cpu)),
            run.name: dict(outcomes(ours)),
            "expected": [dataclasses.asdict(d) for d in found if d.reason],
            "unexpected": [dataclasses.asdict(d) for d in found if not d.reason],
            "stale": [
                f"{name}: {entry['test']}"
                for entry in expected
                if not any(meets(entry, d.test, d.message) for d in found)
            ],
        }
    return {
        "jax": jax.__version__,
        "run": run.name,
        "generated_cases": args.generated_cases,
        "pass_on_cpu_and_run_on_trn3": passing,
        "pass_on_both": kept,
        "files": files,
    }


def counts(file: dict, run: str) -> str:
    return " / ".join(str(file[run].get(o, 0)) for o in ("passed", "failed", "skipped"))


def markdown(result: dict) -> str:
    """The table by file, of those in which a test ran."""
    passing, kept = result["pass_on_cpu_and_run_on_trn3"], result["pass_on_both"]
    lines = [
        f"# JAX {result['jax']}'s own tests: {result['run']}",
        "",
        f"{kept} of {passing} tests that pass on the CPU backend pass "
        f"({kept / max(passing, 1):.2%}).",
        f"JAX_NUM_GENERATED_CASES={result['generated_cases']}, slow tests skipped, 8 devices.",
        "Kernels that tests have JAX interpret (`interpret=True`) run as trn3 runs kernels.",
        "Made by tools/jax_conformance.py; jax_conformance.toml has the reason of each failure.",
        "",
        "| file | passed / failed / skipped on cpu | on trn3 |",
        "|---|---|---|",
    ]
    for name, file in result["files"].items():
        if file["cpu"].get("passed") or file[result["run"]].get("passed"):
            lines.append(f"| {name} | {counts(file, 'cpu')} | {counts(file, result['run'])} |")
    return "\n".join(lines) + "\n"


def show(result: dict, console: Console) -> bool:
    """Prints the table and the differences. True if there are no surprises."""
    table = Table("file", "cpu", result["run"], "expected", "unexpected", box=None)
    table.title = f"JAX {result['jax']}: passed / failed / skipped"
    surprises = []
    for name, file in result["files"].items():
        both = [counts(file, run) for run in ("cpu", result["run"])]
        table.add_row(name, *both, str(len(file["expected"])), str(len(file["unexpected"])))
        surprises += [(name, d) for d in file["unexpected"]]
    console.print(table)
    for name, difference in surprises:
        lines = difference["message"].strip().splitlines() or [""]
        console.print(f"\n{name}::{difference['test']} {difference['outcome']}", markup=False)
        console.print(f"    {lines[0][:300]}", markup=False)
    old = [entry for file in result["files"].values() for entry in file["stale"]]
    for entry in old:
        console.print(f"in the manifest, but did not happen: {entry}", markup=False)
    passing, kept = result["pass_on_cpu_and_run_on_trn3"], result["pass_on_both"]
    console.print(
        f"\n{kept} of {passing} tests that pass on the CPU pass on {result['run']} "
        f"({kept / max(passing, 1):.2%}); {len(surprises)} differences are unexpected"
    )
    return not surprises and not old


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="such as array_test or pallas/ops_test")
    parser.add_argument("--jax", type=Path, required=True, help="JAX's source tree")
    parser.add_argument("--dut", default="cpu", choices=["cpu", "own"], help="jax_test_dut on trn3")
    parser.add_argument("--out", type=Path, default=Path("build/jax_conformance"))
    parser.add_argument("--json", type=Path, help="where to write the comparison")
    parser.add_argument("--markdown", type=Path, help="where to write the table, as Markdown")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--generated-cases", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the results that --out has")
    args = parser.parse_args()
    args.out, source = args.out.resolve(), args.jax.resolve()
    check_version(source)
    manifest = load_manifest()
    names = test_files(source, manifest, args.files)
    run = Run("trn3", "" if args.dut == "own" else args.dut)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(run_file, r, name, source, args, manifest)
            for name in names
            for r in (Run("cpu", ""), run)
        ]
        for job in jobs:
            job.result()
    result = report(names, run, args, manifest)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(result))
    sys.exit(0 if show(result, Console()) else 1)


if __name__ == "__main__":
    main()
