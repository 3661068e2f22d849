"""The paper (arXiv:1909.12488) in plain numpy: local SGD, updates, rounds and server optimizers, all by hand.

Parameters are one flat vector. A batch is whatever the problem's functions take; a path is a list of batches.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = Any
Reply = tuple[np.ndarray, int]


class Problem(NamedTuple):
    """A loss by its derivatives: `gradient(theta, batch)` `[n]` and `hessian(theta, batch)` `[n, n]`."""

    gradient: Callable[[np.ndarray, Batch], np.ndarray]
    hessian: Callable[[np.ndarray, Batch], np.ndarray]


def quadratic(curvature: np.ndarray) -> Problem:
    """1/2 (θ - c)' A (θ - c), in the mean over a batch of centres c `[batch, n]`."""
    return Problem(
        lambda theta, centres: curvature @ (theta - centres.mean(axis=0)),
        lambda theta, centres: curvature,
    )


def softmax_regression(features: int, classes: int) -> Problem:
    """Mean cross-entropy of logits `x @ theta[:-1] + theta[-1]`, theta `[features + 1, classes]` flattened."""

    def probabilities(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        logits = with_one(x) @ theta.reshape(features + 1, classes)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def gradient(theta: np.ndarray, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        x, y = batch
        return (with_one(x).T @ (probabilities(theta, x) - np.eye(classes)[y])).ravel() / len(x)

    def hessian(theta: np.ndarray, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        x, _ = batch
        total = np.zeros((theta.size, theta.size))
        for row, p in zip(with_one(x), probabilities(theta, x), strict=True):
            total += np.kron(np.outer(row, row), np.diag(p) - np.outer(p, p))
        return total / len(x)

    return Problem(gradient, hessian)


def softmax_loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """`[batch]`: the cross-entropy of every example."""
    logits = with_one(x) @ theta.reshape(-1, classes)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


def softmax_correct(theta: np.ndarray, x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """`[batch]`: 1 where the most likely class is the right one."""
    return ((with_one(x) @ theta.reshape(-1, classes)).argmax(axis=1) == y).astype(float)


def with_one(x: np.ndarray) -> np.ndarray:
    """The inputs with a last feature of ones, for the bias."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def iterates(problem: Problem, theta: np.ndarray, path: Sequence[Batch], learning_rate: float) -> list[np.ndarray]:
    """θ_0 … θ_K of local SGD on the batches of a path."""
    visited = [theta]
    for batch in path:
        visited.append(visited[-1] - learning_rate * problem.gradient(visited[-1], batch))
    return visited


def fedsgd(problem: Problem, theta: np.ndarray, everything: Batch, learning_rate: float) -> np.ndarray:
    """β g_1 on one batch."""
    return learning_rate * problem.gradient(theta, everything)


def fedavg(problem: Problem, theta: np.ndarray, path: Sequence[Batch], learning_rate: float) -> np.ndarray:
    """θ - θ_K; Reptile is the same with another K."""
    return theta - iterates(problem, theta, path, learning_rate)[-1]


def fomaml(
    problem: Problem, theta: np.ndarray, path: Sequence[Batch], query: Batch, learning_rate: float
) -> np.ndarray:
    """β g_{K+1}."""
    return learning_rate * problem.gradient(iterates(problem, theta, path, learning_rate)[-1], query)


def maml(problem: Problem, theta: np.ndarray, path: Sequence[Batch], query: Batch, learning_rate: float) -> np.ndarray:
    """β (I - β H_1) … (I - β H_K) g_{K+1}: the chain rule, written out."""
    visited = iterates(problem, theta, path, learning_rate)
    vector = problem.gradient(visited[-1], query)
    for point, batch in reversed(list(zip(visited[:-1], path, strict=True))):
        vector = vector - learning_rate * problem.hessian(point, batch) @ vector
    return learning_rate * vector


def fedprox(problem: Problem, theta: np.ndarray, path: Sequence[Batch], learning_rate: float, mu: float) -> np.ndarray:
    """θ - θ_K on the local loss plus μ/2 ‖θ_j - θ‖²."""
    current = theta
    for batch in path:
        current = current - learning_rate * (problem.gradient(current, batch) + mu * (current - theta))
    return theta - current


def mean_delta(replies: Sequence[Reply], weighting: str) -> np.ndarray:
    """The mean of Δ over `(Δ, number of examples)`, by examples or uniform over the clients that have any."""
    weights = [float(size) if weighting == "examples" else float(size > 0) for _, size in replies]
    return sum(w * delta for w, (delta, _) in zip(weights, replies, strict=True)) / sum(weights)


class Sgd:
    """θ ← θ - η v, v ← momentum · v + g (undamped)."""

    def __init__(self, learning_rate: float, momentum: float = 0.0):
        self.learning_rate, self.momentum, self.velocity = learning_rate, momentum, 0.0

    def step(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """One step."""
        self.velocity = self.momentum * self.velocity + gradient
        return theta - self.learning_rate * self.velocity


class Adam:
    """Kingma & Ba 2015, Algorithm 1."""

    def __init__(self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, epsilon
        self.first, self.second, self.count = 0.0, 0.0, 0

    def step(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """One step."""
        self.count += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        self.second = self.beta2 * self.second + (1 - self.beta2) * gradient**2
        first = self.first / (1 - self.beta1**self.count)
        second = self.second / (1 - self.beta2**self.count)
        return theta - self.learning_rate * first / (np.sqrt(second) + self.epsilon)


class Yogi:
    """Zaheer et al. 2018, with the bias correction and the initial value of both moments that optax has."""

    def __init__(self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-3):
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, epsilon
        self.first, self.second, self.count = 1e-6, 1e-6, 0

    def step(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """One step."""
        self.count += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        squared = gradient**2
        self.second = self.second - (1 - self.beta2) * np.sign(self.second - squared) * squared
        first = self.first / (1 - self.beta1**self.count)
        second = self.second / (1 - self.beta2**self.count)
        return theta - self.learning_rate * first / (np.sqrt(second) + self.epsilon)


class Adagrad:
    """Duchi et al. 2011, the sum of squares beginning at 0.1."""

    def __init__(self, learning_rate: float, epsilon: float = 1e-7):
        self.learning_rate, self.epsilon, self.squares = learning_rate, epsilon, 0.1

    def step(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """One step."""
        self.squares = self.squares + gradient**2
        return theta - self.learning_rate * gradient / np.sqrt(self.squares + self.epsilon)
