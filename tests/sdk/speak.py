"""Sends requests as helper_ai makes them by the providers' own Python SDKs, once they are of the SDKs' own types.

Each line on standard input is a JSON object: `kind`, `body`, the request's, and `base_url`, where a server is that
speaks the provider's protocol. Each is answered by a line: `read`, what the SDK read in the reply; `refused`, where the
body is not of the SDK's types; or `failed`, what the SDK said of the reply.
"""

import functools
import json
import sys

KEY = "sk-none"


class Refused(Exception):
    """The body is not of the SDK's types."""


def refused(error):
    """What pydantic says; of several types to choose from, only of those that the body may have meant."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    tags = [each["loc"] for each in errors if each["type"] == "literal_error"]
    others = [place[:-1] for place in tags if place[-1] in ("type", "role", "stream")]
    meant = [each for each in errors if not any(each["loc"][:len(other)] == other for other in others)]
    said = (f"{'.'.join(map(str, each['loc'][-2:]))}: {each['msg']}" for each in meant or errors)
    return Refused("\n".join(dict.fromkeys(said)))


def closed(schema):
    """A schema of pydantic that allows no other fields, and looks at once into what would wait to be iterated."""
    if isinstance(schema, dict):
        made = {name: value if name == "metadata" else closed(value) for name, value in schema.items()}
        if made.get("type") in ("typed-dict", "model-fields"):
            made["extra_behavior"] = "forbid"
        if made.get("type") == "generator":
            made["type"] = "list"
        return made
    if isinstance(schema, (list, tuple)):
        return type(schema)(closed(value) for value in schema)
    return schema


@functools.cache
def validator(kind):
    """Of the types that the SDK gives the body of a request."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator
    if kind == "openai":
        from openai.types.chat.completion_create_params import CompletionCreateParams as params
    elif kind == "openai/embeddings":
        from openai.types.embedding_create_params import EmbeddingCreateParams as params
    elif kind == "anthropic":
        from anthropic.types.message_create_params import MessageCreateParams as params
    elif kind == "ollama/options":
        from ollama import Options as params
    # Types of replies are among those of requests; without this their own validators would be used, which are open.
    return SchemaValidator(closed(TypeAdapter(params).core_schema), _use_prebuilt=False)


def check(kind, body):
    from pydantic import ValidationError
    try:
        validator(kind).validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        raise refused(error)


@functools.cache
def openai_client(base_url, strict=True):
    import openai
    return openai.OpenAI(api_key=KEY, base_url=base_url, max_retries=0, _strict_response_validation=strict)


def openai(base_url, body):
    check("openai", body)
    reply = openai_client(base_url).chat.completions.create(**body)
    words, calls, stop, usage = [], [], None, None
    for part in reply if body.get("stream") else [reply]:
        usage = part.usage or usage
        for choice in part.choices:
            message = choice.delta if body.get("stream") else choice.message
            words += [message.content or "", message.refusal or ""]
            for call in message.tool_calls or []:
                if not body.get("stream") or call.index == len(calls):
                    calls.append(["", ""])
                call_at = calls[call.index] if body.get("stream") else calls[-1]
                call_at[0] += call.function.name or ""
                call_at[1] += call.function.arguments or ""
            stop = choice.finish_reason or stop
    tokens = usage and [usage.prompt_tokens, usage.completion_tokens]
    return "".join(words), [[name, json.loads(text)] for name, text in calls], stop, tokens


def openai_embeddings(base_url, body):
    check("openai/embeddings", body)
    # Unless told otherwise, the SDK asks for base64 and reads it.
    body = {name: value for name, value in body.items() if name != "encoding_format"}
    reply = openai_client(base_url, strict=False).embeddings.create(**body)
    reply = type(reply).model_validate(reply.to_dict())
    return [item.embedding for item in reply.data], [], None, [reply.usage.prompt_tokens, 0]


def anthropic(base_url, body):
    import anthropic as sdk
    check("anthropic", body)
    client = sdk.Anthropic(api_key=KEY, base_url=base_url, max_retries=0, _strict_response_validation=True)
    reply = client.messages.create(**body)
    if body.get("stream"):
        # Put together by the SDK as well.
        from anthropic.lib.streaming import MessageStream
        reply = MessageStream(reply, output_format=sdk.NOT_GIVEN).get_final_message()
    words = "".join(block.text for block in reply.content if block.type == "text")
    calls = [[block.name, block.input] for block in reply.content if block.type == "tool_use"]
    used = reply.usage
    tokens = used.input_tokens + (used.cache_creation_input_tokens or 0) + (used.cache_read_input_tokens or 0)
    return words, calls, reply.stop_reason, [tokens, used.output_tokens]


@functools.cache
def gemini_client(base_url):
    from google import genai
    return genai.Client(api_key=KEY, http_options={"base_url": base_url, "api_version": "v1beta"})


def flat(body):
    """The body as the SDK's own configuration has it, which does not nest what the protocol does."""
    config = {name: value for name, value in body.items() if name != "contents"}
    return {**config.pop("generationConfig", {}), **config}


def gemini(base_url, body, model, stream):
    from google.genai import types
    from pydantic import TypeAdapter, ValidationError
    try:
        contents = TypeAdapter(list[types.Content]).validate_python(body["contents"])
        types.GenerationConfig.model_validate(body.get("generationConfig", {}))
        config = types.GenerateContentConfig.model_validate(flat(body))
    except ValidationError as error:
        raise refused(error)
    models = gemini_client(base_url).models
    ask = models.generate_content_stream if stream else models.generate_content
    reply = ask(model=model, contents=contents, config=config)
    words, calls, stop, tokens = [], [], None, None
    for part in reply if stream else [reply]:
        if part.usage_metadata:
            used = part.usage_metadata
            tokens = [used.prompt_token_count, (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)]
        for candidate in part.candidates or []:
            for piece in candidate.content.parts if candidate.content and candidate.content.parts else []:
                if piece.function_call:
                    calls.append([piece.function_call.name, piece.function_call.args or {}])
                elif piece.text and not piece.thought:
                    words.append(piece.text)
            stop = candidate.finish_reason or stop
    return "".join(words), calls, stop, tokens


def gemini_embeddings(base_url, body, model):
    from google.genai import types
    from pydantic import ValidationError
    requests = body["requests"]
    try:
        contents = [types.Content.model_validate(request["content"]) for request in requests]
        # One configuration is for all of them.
        rest = {name: value for name, value in requests[0].items() if name not in ("content", "model")}
        config = types.EmbedContentConfig.model_validate(rest)
    except ValidationError as error:
        raise refused(error)
    reply = gemini_client(base_url).models.embed_content(model=model, contents=contents, config=config)
    return [item.values for item in reply.embeddings], [], None, None


def ollama(base_url, body):
    from ollama import Client
    from pydantic import ValidationError
    check("ollama/options", body.get("options", {}))
    try:
        reply = Client(host=base_url).chat(**body)
    except ValidationError as error:
        raise refused(error)
    words, calls, stop, tokens = [], [], None, None
    for part in reply if body["stream"] else [reply]:
        words.append(part.message.content or "")
        calls += [[call.function.name, dict(call.function.arguments)] for call in part.message.tool_calls or []]
        stop = part.done_reason or stop
        tokens = [part.prompt_eval_count, part.eval_count] if part.eval_count is not None else tokens
    return "".join(words), calls, stop, tokens


def ollama_embeddings(base_url, body):
    from ollama import Client
    from pydantic import ValidationError
    try:
        reply = Client(host=base_url).embed(**body)
    except ValidationError as error:
        raise refused(error)
    return [list(vector) for vector in reply.embeddings], [], None, [reply.prompt_eval_count, 0]


SPEAK = {
    "openai": openai,
    "openai/embeddings": openai_embeddings,
    "anthropic": anthropic,
    "gemini": gemini,
    "gemini/embeddings": gemini_embeddings,
    "ollama": ollama,
    "ollama/embeddings": ollama_embeddings,
}

for line in sys.stdin:
    task = json.loads(line)
    try:
        said, calls, stop, tokens = SPEAK[task.pop("kind")](**task)
        answer = {"read": {"said": said, "calls": calls, "stop": stop, "tokens": tokens}}
    except Refused as error:
        answer = {"refused": str(error)}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
