"""Scripted models for the chat agent: each reply is one step."""

import json

import dspy
from scripted import action, fields, scripted_lm

from fleet_rlm.program.agent.agent import RLMReActChatAgent


def call(tool, _thought="thinking", **args):
    return fields(next_thought=_thought, next_tool_name=tool, next_tool_args=json.dumps(args))


def finish(text="done"):
    return call("finish", assistant_response=text)


def in_turn(*replies, code="SUBMIT('4711')"):
    """A script: `replies` for the agent's own prompts in order, `code` for recursive programs."""
    left = iter(replies)

    def script(prompt, _):
        if "repl_history" in prompt:
            return action(code)
        reply = next(left)
        return reply(prompt) if callable(reply) else reply

    return scripted_lm(script)


def chat(agent, *replies, message="hello", **script):
    """One chat turn that follows a script."""
    with dspy.context(lm=in_turn(*replies, **script)):
        return agent.chat_turn(message)


def observe(agent, tool, message="hello", code="SUBMIT('4711')", **args):
    """What the model reads after it has called one tool."""
    found = chat(agent, call(tool, **args), finish(), message=message, code=code)
    return found["trajectory"][0]["observation"]


def make_agent(folder=None, **arguments):
    return RLMReActChatAgent(roots=() if folder is None else [folder], **arguments)
