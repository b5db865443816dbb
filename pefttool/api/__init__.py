"""The contract: what plugins implement, the values that go through it, and the errors of both sides."""
