"""How fast and how steady the server is: beside the bare ONNX Runtime call on the same pixels, and under bad requests.

    python -m defectcls.export checkpoint=<run> output=model.onnx
    python -m benchmarks.serving model.onnx --write experiments/serving/measured.csv

Clients are threads of this process, which shares the machine with the server: what they take is part of the number.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from benchmarks.results import Line, keep, spread

CLIENTS = (1, 8, 32)
BATCH = 32
PHOTOS = 64  # different ones, drawn, of the model's size
NO_PHOTO = b"a text, and no photo"


def photos(size: tuple[int, int]) -> list[bytes]:
    """Contents of JPEG files of a height and width: clouds, which compress as photos do."""
    drawn, found = np.random.default_rng(0), []
    for _ in range(PHOTOS):
        noise = Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).filter(ImageFilter.GaussianBlur(2))
        noise.save(content := io.BytesIO(), "JPEG", quality=90)
        found.append(content.getvalue())
    return found


def bad_requests(model: str, most_bytes: int) -> dict[str, bytes]:
    """What is wrong, and the request as it goes over the wire.

    Args:
        model: name of one that is served.
        most_bytes: that a request may have.
    """
    Image.new("RGB", (64, 64), "grey").save(png := io.BytesIO(), "PNG")
    Image.new("RGB", (64, 64), "grey").save(jpeg := io.BytesIO(), "JPEG")
    bomb = bytearray(png.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    infer, form = f"/v2/models/{model}/infer", {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n'
    text = {"Content-Type": "application/json"}

    def tensor(shape: list[int], given: dict[str, object], kind: str = "UINT8", **more: object) -> bytes:
        image = {"name": "image", "shape": shape, "datatype": kind} | given
        return json.dumps({"inputs": [image]} | more).encode()

    one: dict[str, object] = {"data": [0, 1, 2]}
    return {
        "nothing": _post("/predict", b""),
        "a text": _post("/predict", NO_PHOTO),
        "a PNG that is cut off": _post("/predict", png.getvalue()[:60]),
        "a JPEG that is cut off": _post("/predict", jpeg.getvalue()[:300]),
        "a decompression bomb": _post("/predict", bytes(bomb)),
        "a zip archive": _post("/predict", b"PK\x03\x04" + bytes(500)),
        "a drawing": _post("/predict", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "too many bytes": _post("/predict", bytes(most_bytes + 1)),
        "a form without a boundary": _post("/predict", part % NO_PHOTO, {"Content-Type": "multipart/form-data"}),
        "a form without files": _post("/predict", b"--x--\r\n", form),
        "a form of fields": _post(
            "/predict", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--', form
        ),
        "a form that is cut off": _post("/predict", (part % png.getvalue())[:90], form),
        "a form whose second file is cut off": _post("/predict", part % png.getvalue() + (part % NO_PHOTO)[:90], form),
        "a form of noise": _post("/predict", bytes(range(256)), form),
        "a form in no encoding": _post(
            "/predict", part % b"" + b"--x--", {"Content-Type": form["Content-Type"] + "; charset=q"}
        ),
        "a form of many files": _post("/predict", part % NO_PHOTO * 300 + b"--x--", form),
        "a form of no photos": _post("/predict", part % NO_PHOTO + b"--x--\r\n", form),
        "JSON that is cut off": _post("/predict", b'{"images": [', text),
        "JSON of another kind": _post("/predict", b'["images"]', text),
        "JSON without images": _post("/predict", b'{"images": []}', text),
        "JSON that is deep": _post("/predict", b"[" * 100_000, text),
        "JSON in UTF-16": _post("/predict", '{"images": []}'.encode("utf-16"), text),
        "no base64": _post("/predict", b'{"images": [{"data": "%%%"}]}', text),
        "an unknown model": _post("/predict?model=nobody", png.getvalue()),
        "an unknown place": _post("/predicts", png.getvalue()),
        "another method": _post("/predict", png.getvalue(), method="DELETE"),
        "a page of somebody else": _post("/predict", png.getvalue(), {"Origin": "http://elsewhere.example"}),
        "a trigger of nothing": _post("/trigger/nobody", b""),
        "a photo that is none": _post("/api/photo/99999999999999999999", b"", method="GET"),
        "a time that is none": _post("/api/counts?since=yesterday", b"", method="GET"),
        "an inference by nobody": _post("/v2/models/nobody/infer", tensor([1, 1, 1, 3], one)),
        "a tensor of floats": _post(infer, tensor([1, 1, 1, 3], one, "FP32")),
        "a tensor too short": _post(infer, tensor([1, 8, 8, 3], one)),
        "a tensor of no size": _post(infer, tensor([1, -1, 1, 3], one)),
        "a tensor of all sizes": _post(infer, tensor([10**12, 10**12, 10**12, 3], one)),
        "a tensor beyond bytes": _post(infer, tensor([1, 1, 1, 3], {"data": [0, 1, 10**40]})),
        "a tensor of words": _post(infer, tensor([1, 1, 1, 3], {"data": [["a"], {}, None]})),
        "bytes that are not there": _post(infer, tensor([1, 9, 9, 3], {"parameters": {"binary_data_size": 243}})),
        "a head that is too long": _post(infer, b"{}", {"Inference-Header-Content-Length": "99"}),
        "a head of no length": _post(infer, b"{}", {"Inference-Header-Content-Length": "-1"}),
        "an unknown output": _post(infer, tensor([1, 1, 1, 3], one, outputs=[{"name": "loss"}])),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        "a length below nothing": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        "two lengths": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    }


def _post(path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
    given = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def answered(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to what goes over the wire; 0 where there was none."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        wire.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while some := wire.recv(65536):
                answer += some
    match = re.match(rb"HTTP/1.1 (\d+) ", answer)
    return int(match[1]) if match else 0, answer.partition(b"\r\n\r\n")[2]


@contextmanager
def served(model: Path, *given: str, verb: str = "serve") -> Iterator[tuple[int, int, Path]]:
    """Port, process id and folder of a server with these settings."""
    with tempfile.TemporaryDirectory() as folder:
        own = ("port=0", f"folder={folder}", *given)
        command = [sys.executable, "-m", f"defectcls.{verb}", f"model={model}", *own]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            told = next(found for line in process.stderr if (found := re.search(r"http://[^/ ]*:(\d+)", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield int(told[1]), process.pid, Path(folder)
        finally:
            process.terminate()
            process.wait(60)


def load(port: int, clients: int, seconds: float, bodies: list[tuple[bytes, dict[str, str]]]) -> np.ndarray:
    """Seconds that each request took, of clients that ask again as soon as they are answered."""
    end, took = time.perf_counter() + seconds, list[float]()

    def ask(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        for body, headers in itertools.cycle(bodies[number % len(bodies) :] + bodies[: number % len(bodies)]):
            began = time.perf_counter()
            if began > end:
                return
            connection.request("POST", "/predict", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"the server answered {answer.status} under load")
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(took)


def bare(model: Path, pixels: np.ndarray, seconds: float) -> Callable[[], tuple[float, float]]:
    """Photos a second of ONNX Runtime alone on pixels in memory, all at a time, and ms of CPU each."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def rate() -> tuple[float, float]:
        began, used, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            session.run(["score"], {"image": pixels})
            done += len(pixels)
        return done / (time.perf_counter() - began), 1000 * (time.process_time() - used) / done

    rate()
    return rate


def cpu_ms(process: int) -> float:
    """That a process has used."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return 1000 * (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> float:
    """MB of a process that are in memory now."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1000  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an .onnx file that export wrote")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--bad", type=int, default=10_000, help="bad requests")
    parser.add_argument("--minutes", type=float, default=10, help="of steady load, in which memory is to stay flat")
    parser.add_argument("--write", type=Path, help="CSV that the results are added to")
    given = parser.parse_args()
    rows = list[dict[str, float]]()
    with served(given.model, "keep=none") as (port, process, _):
        _, told = answered(port, _post("/model", b"", method="GET"))
        about = json.loads(told)
        some = photos(tuple(about["image_size"]))
        single = [(photo, {"Content-Type": "image/jpeg"}) for photo in some]
        parts = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n%s\r\n' % one for one in some[:BATCH]
        )
        many = [(parts + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"})]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in some[:BATCH]])
        rate = bare(given.model, pixels, given.seconds)
        for _ in range(given.rounds):
            row = dict(zip(("bare", "bare CPU"), rate(), strict=True))
            for clients in CLIENTS:
                took = load(port, clients, given.seconds, single)
                quantiles = np.quantile(1000 * took, [0.5, 0.99])
                row |= {f"p50 {clients}": quantiles[0], f"p99 {clients}": quantiles[1]}
                row[f"rate {clients}"] = len(took) / given.seconds
            used, done = cpu_ms(process), BATCH * len(load(port, 2, given.seconds, many))
            row |= {"rate of many": done / given.seconds, "CPU of many": (cpu_ms(process) - used) / done}
            rows.append(row)
        turns = pd.DataFrame(rows)
        before, began, answers = memory(process), time.perf_counter(), Counter[tuple[str, int]]()
        wrong = bad_requests(about["name"], 32_000_000)
        for kind, request in itertools.islice(itertools.cycle(wrong.items()), given.bad):
            answers[kind, answered(port, request)[0]] += 1
        others = {key: count for key, count in answers.items() if not 400 <= key[1] < 500}
        seconds = time.perf_counter() - began
        print(f"{given.bad} bad requests of {len(wrong)} kinds in {seconds:.0f} s: {others or 'all 4xx'}")
        after = memory(process)
        load(port, 8, 60 * given.minutes, single)
        last = memory(process)
    alone, together = f"ONNX Runtime alone, {BATCH} photos", f"2 clients, {BATCH} photos a request"
    lines: list[Line] = [spread(alone, turns["bare"], "photos/s"), spread(alone, turns["bare CPU"], "CPU ms a photo")]
    for clients in CLIENTS:
        lines += [spread(f"{clients} clients", turns[f"{name} {clients}"], f"ms {name}") for name in ("p50", "p99")]
        lines.append(spread(f"{clients} clients", turns[f"rate {clients}"], "photos/s"))
    lines.append(spread(together, turns["rate of many"], "photos/s"))
    lines.append(spread(together, turns["rate of many"] / turns["bare"], "of ONNX Runtime alone"))
    lines.append(spread(together, turns["CPU of many"], "CPU ms a photo"))
    lines.append(spread("bad requests that were no 4xx", pd.Series([sum(others.values())]), "requests"))
    held = {"before": before, "after bad requests": after, f"after {given.minutes:g} minutes of load": last}
    lines += [spread(f"memory {when}", pd.Series([mega]), "MB") for when, mega in held.items()]
    keep(
        lines, {"model": about["about"]["model"], "image_size": "x".join(map(str, about["image_size"]))}, 0, given.write
    )


if __name__ == "__main__":
    main()
