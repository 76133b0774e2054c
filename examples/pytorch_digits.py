"""A classifier of digits with PyTorch. It needs `pip install torch`."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCH_SIZE = 10, 64


@dataclass
class Config:
    learning_rate: float = 1e-3
    dropout_rate: float = 0.1
    width: int = 64


def load_data():
    images, labels = load_digits(return_X_y=True)
    arrays = train_test_split((images / 16).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels)
    return [torch.from_numpy(array) for array in arrays]


def train(config: Config):
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = load_data()
    loader = DataLoader(TensorDataset(train_images, train_labels), BATCH_SIZE, shuffle=True, drop_last=True)
    model = nn.Sequential(
        nn.Linear(64, config.width), nn.ReLU(), nn.Dropout(config.dropout_rate), nn.Linear(config.width, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(test_images).argmax(-1) == test_labels).float().mean()
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {accuracy:.4f}")


if __name__ == "__main__":
    train(Config())
