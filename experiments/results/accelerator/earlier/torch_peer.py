"""Times a training step of PyTorch's LSTM and GRU (cuDNN), eager and as a CUDA graph.

    python experiments/results/accelerator/earlier/torch_peer.py > torch.txt

On a CPU it runs small, and eagerly only.
"""

import statistics
import time

import torch

GPU = torch.cuda.is_available()
dev = "cuda" if GPU else "cpu"
N = 30 if GPU else 2


def sync():
    if GPU:
        torch.cuda.synchronize()


def median_ms(f):
    for _ in range(3):
        f()
    sync()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(N):
            f()
        sync()
        times.append((time.perf_counter() - start) / N)
    return round(statistics.median(times) * 1e3, 4)


for B, H, T, I in (
    [(100, 128, 28, 28), (1024, 512, 28, 28), (100, 128, 784, 1)] if GPU else [(4, 8, 5, 3)]
):
    for kind in ("LSTM", "GRU"):
        rnn = getattr(torch.nn, kind)(I, H, batch_first=True).to(dev)
        head = torch.nn.Linear(H, 10).to(dev)
        x = torch.randn(B, T, I, device=dev)
        y = torch.randint(0, 10, (B,), device=dev)
        optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 1e-3, capturable=GPU)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(head(rnn(x)[0][:, -1]), y)
            loss.backward()
            optimizer.step()

        shape = f"{kind} B {B} H {H} T {T}"
        print(f"torch {torch.__version__} {shape} eager step_ms {median_ms(step)}", flush=True)
        if GPU:
            try:
                g = torch.cuda.CUDAGraph()
                s = torch.cuda.Stream()
                s.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(s):
                    for _ in range(3):
                        step()
                torch.cuda.current_stream().wait_stream(s)
                with torch.cuda.graph(g):
                    step()
                print(f"torch {shape} CUDA graph step_ms {median_ms(g.replay)}", flush=True)
            except Exception as e:
                print("torch graph failed", type(e).__name__, str(e)[:200], flush=True)
