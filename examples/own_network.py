"""SAOL on a network of your own, in a training loop of your own: some seconds on one core."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from saol_lib import attach_saol, mix, score_maps, total_loss


def block(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def main(epochs: int = 4) -> dict[str, float]:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16).float().view(-1, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(labels))
    train, test = torch.utils.data.random_split(data, [1400, 397])
    batches = DataLoader(train, batch_size=50, shuffle=True)

    body = nn.Sequential(block(1, 16, 1), block(16, 32, 1), block(32, 64, 2))
    network = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = attach_saol(network, nodes=["0.0", "0.1", "0.2"])  # shallow to deep; the last is pooled
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for _ in range(epochs):
        for images, labels in batches:
            mixed = mix(images, labels, num_classes=10)  # CutMix, with its masks
            losses = total_loss(model(mixed.images), mixed)  # L_SL, L_SS1, L_SS2, L_SD
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()

    model.eval()
    images, labels = next(iter(DataLoader(test, batch_size=len(test))))
    with torch.inference_mode():
        outputs = model(images)
    saol = outputs.saol_log_probs.argmax(dim=1)
    gap = outputs.gap_logits.argmax(dim=1)
    maps = score_maps(model, images, saol)  # (N, H, W) in 0..1: A * Y_k, as large as the images
    print(f"the first map's strongest pixel: {maps[0].argmax().item()}")
    return {"SAOL": (saol == labels).float().mean().item(), "GAP-FC": (gap == labels).float().mean().item()}


if __name__ == "__main__":
    print(main())
