"""Graphs of several losses, one for each way in which they can merge, and any number of them at random."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

DTYPE = torch.float64


class Scaled(torch.autograd.Function):
    """Doubles the gradient, and claims a leaf for itself."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.variable = weight
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return 2 * grad * weight, 2 * (grad * x).sum(0)


class Two(torch.autograd.Function):
    """Has two outputs, of which a loss may use one."""

    @staticmethod
    def forward(ctx, x):
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, one, two):
        return one + 3 * two


class Parts:
    """Layers, made when first asked for, from one generator."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.parameters = {}

    def weight(self, name, *shape):
        if name not in self.parameters:
            values = torch.randn(*(shape or (4, 4)), generator=self.generator, dtype=DTYPE) / 2
            self.parameters[name] = nn.Parameter(values)
        return self.parameters[name]

    def layer(self, name, x):
        return (x @ self.weight(name) + self.weight(f"{name} bias", 4)).tanh()

    def head(self, name, z):
        return self.layer(name, z).square().mean()

    def module(self, name):
        module = nn.Sequential(nn.Linear(4, 4, dtype=DTYPE), nn.Tanh())
        with torch.no_grad():
            for own, parameter in module.named_parameters():
                parameter.copy_(self.weight(f"{name}.{own}", *parameter.shape))
                self.parameters[f"{name}.{own}"] = parameter
        return module

    def input(self):
        return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


def trunk_and_heads(p):
    z = p.layer("trunk", p.input())
    return [p.head(name, z) for name in "abc"], [z]


def partly_shared(p):
    z = p.layer("trunk", p.input())
    ab, bc = p.layer("ab", z), p.layer("bc", z)
    return [p.head("a", ab), p.head("b", ab + bc), p.head("c", bc), p.head("d", z)], [z]


def several_depths(p):
    low = p.layer("low", p.input())
    high = p.layer("high", low)
    return [p.head("a", high + low), p.head("b", high), p.head("c", low), p.head("d", p.layer("e", high) * low)], [low]


def pyramid(p):
    low = p.layer("low", p.input())
    high = p.layer("high", low)
    return [p.head(name, p.layer(f"{name} low", low) + p.layer(f"{name} high", high)) for name in "abc"], [low, high]


def one_loss_of_another(p):
    z = p.layer("trunk", p.input())
    a = p.head("a", z)
    b = p.head("b", z)
    return [a, b + a.square(), a * 3, b], [z]


def same_loss_twice(p):
    z = p.layer("trunk", p.input())
    a = p.head("a", z)
    return [a, p.head("b", z), a], [z]


def tied(p):
    z = p.layer("trunk", p.input())
    return [p.head("a", z), (p.layer("b", z) @ p.weight("trunk").T).square().mean(), p.head("c", z)], [z]


def one_forward_pass_a_task(p):
    zs = [p.layer("trunk", p.input() + index) for index in range(3)]
    return [p.head(name, z) for name, z in zip("abc", zs, strict=True)], None


def several_inputs(p):
    left, right = p.layer("left", p.input()), p.layer("right", p.input().flip(0))
    both = p.layer("both", left * right)
    return [p.head("a", left), p.head("b", right), p.head("c", both), p.head("d", left + right)], None


def several_representations(p):
    left, right = p.layer("left", p.input()), p.layer("right", p.input().flip(0))
    return [p.head("a", left), p.head("b", right) + left.mean(), p.head("c", left * right)], [left, right]


def hook_on_the_trunks_output(p):
    z = p.layer("trunk", p.input())
    z.register_hook(lambda gradient: 0.1 * gradient)
    return [p.head(name, z) for name in "abc"], [z]


def hook_in_place(p):
    z = p.layer("trunk", p.input())
    z.register_hook(lambda gradient: gradient.mul_(0.1))
    return [p.head(name, z) for name in "abc"], [z]


def hook_on_one_of_two(p):
    low = p.layer("low", p.input())
    high = p.layer("high", low)
    low.register_hook(lambda gradient: 0.1 * gradient)
    return [p.head("a", high), p.head("b", high), p.head("c", low)], [low]


def hook_in_a_head(p):
    z = p.layer("trunk", p.input())
    own = p.layer("own", z)
    own.register_hook(lambda gradient: 0.1 * gradient)
    return [p.head("a", own), p.head("b", z)], [z]


def module_hooks(p):
    trunk, head = p.module("trunk"), p.module("head")
    trunk.register_full_backward_hook(lambda module, inputs, outputs: tuple(g * 0.5 for g in inputs if g is not None))
    trunk.register_full_backward_pre_hook(lambda module, outputs: tuple(g * 0.5 for g in outputs))
    head.register_full_backward_hook(lambda module, inputs, outputs: tuple(g * 3 for g in inputs))
    z = trunk(p.layer("first", p.input()))
    return [head(z).square().mean(), p.head("b", z), p.head("c", z)], [z]


def retained(p):
    z = p.layer("trunk", p.input())
    z.retain_grad()
    return [p.head(name, z) for name in "abc"], [z]


def leaf_losses(p):
    z = p.layer("trunk", p.input())
    temperature = p.weight("temperature", 1).squeeze()
    return [p.head("a", z), temperature, temperature * 2, p.head("b", z) * temperature], None


def bare_leaf(p):
    z = p.layer("trunk", p.input())
    if "scalar" not in p.parameters:
        p.parameters["scalar"] = nn.Parameter(torch.tensor(2.0, dtype=DTYPE))
    scalar = p.parameters["scalar"]
    return [p.head("a", z) * scalar, scalar, p.head("b", z)], None


def shared_parameters_in_heads(p):
    z = p.layer("trunk", p.input())
    penalty = p.weight("trunk").square().mean()
    return [p.head("a", z) + penalty, p.head("b", z), p.head("c", p.layer("trunk", z)) + 2 * penalty], [z]


def custom_functions(p):
    z = Scaled.apply(p.layer("trunk", p.input()), p.weight("scale", 4))
    one, two = Two.apply(z)
    own = Scaled.apply(z, p.weight("own scale", 4))
    return [p.head("a", z), p.head("b", one), p.head("c", one + two), p.head("d", own)], [z]


def checkpointed(p):
    z = checkpoint(lambda x: p.layer("trunk", p.layer("first", x)), p.input(), use_reentrant=False)
    return [checkpoint(p.head, name, z, use_reentrant=False) for name in "abc"], [z]


def detached_and_frozen(p):
    z = p.layer("trunk", p.input())
    p.weight("a").requires_grad_(False)
    return [p.head("a", z), p.head("b", z.detach()), p.head("c", z)], None


def views_and_unbind(p):
    one, two, three = p.layer("trunk", p.input()).unbind()
    return [p.head("a", one), p.head("b", two) + one.sum(), p.head("c", three)], None


CASES = [
    trunk_and_heads,
    partly_shared,
    several_depths,
    pyramid,
    one_loss_of_another,
    same_loss_twice,
    tied,
    one_forward_pass_a_task,
    several_inputs,
    several_representations,
    hook_on_the_trunks_output,
    hook_in_place,
    hook_on_one_of_two,
    hook_in_a_head,
    module_hooks,
    retained,
    leaf_losses,
    bare_leaf,
    shared_parameters_in_heads,
    custom_functions,
    checkpointed,
    detached_and_frozen,
    views_and_unbind,
]


def random_graph(seed):
    """A few layers, each of what one or two earlier ones give, and losses of any of them, by parameters used twice."""

    def build(p):
        draw = random.Random(seed)
        points = [p.layer("trunk", p.input())]
        if draw.random() < 0.1:
            points[0].register_hook(lambda gradient: gradient * 0.5)
        for index in range(draw.randint(1, 7)):
            x = draw.choice(points)
            if draw.random() < 0.3:
                x = x * draw.choice(points)
            if draw.random() < 0.15:
                one, two = Two.apply(x)
                points += [one, two]
            name = draw.choice(["trunk", "used twice"]) if draw.random() < 0.2 else f"layer {index}"
            points.append(p.layer(name, x))
            if draw.random() < 0.1:
                points[-1].register_hook(lambda gradient: gradient * 0.5)
        losses = []
        for index in range(draw.randint(2, 4)):
            loss = p.head(f"head {index}", draw.choice(points))
            for point in draw.sample(points, draw.randint(0, min(2, len(points)))):
                loss = loss + point.square().mean()
            if losses and draw.random() < 0.2:
                loss = loss * draw.choice(losses)
            losses.append(loss)
        return losses, [points[0]]

    return build
