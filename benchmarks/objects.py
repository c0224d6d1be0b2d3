"""What an S3 server reaches by itself: the same objects up and down, in parallel, by boto3 alone.

    python objects.py FOLDER ENDPOINT BUCKET PREFIX      prints the seconds of both as JSON

The keys are those of the environment.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

AT_ONCE = 8
PIECE = 8 * 1024 * 1024


def main(folder: Path, endpoint: str, bucket: str, prefix: str) -> None:
    """Upload all files below `folder`, then read them again."""
    settings = Config(
        s3={"addressing_style": "path"}, max_pool_connections=4 * AT_ONCE,
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=settings)
    whole = TransferConfig(use_threads=False, multipart_threshold=1 << 30)
    names = {f"{prefix}/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}

    def upload(name: str) -> None:
        client.upload_file(str(names[name]), bucket, name, Config=whole)

    def download(name: str) -> None:
        body = client.get_object(Bucket=bucket, Key=name)["Body"]
        while body.read(PIECE):
            pass

    seconds = {}
    for path in names.values():  # into the page cache
        path.read_bytes()
    for step, work in (("upload", upload), ("download", download)):
        begun = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(work, names))
        seconds[step] = time.monotonic() - begun
    print(json.dumps({**seconds, "bytes": sum(path.stat().st_size for path in names.values()), "objects": len(names)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
