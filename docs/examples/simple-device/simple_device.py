"""The simplest device: one topic, a set of revoked jtis, and a "no" to every token that is in it.

    python3 simple_device.py HOST PORT NAME JWKS AUDIENCE < tokens      needs PyJWT and paho-mqtt

What it cannot do, and a device of Revocast can: it believes whoever may publish on the topic; it forgets what it heard
when it ends; it hears of no reinstatement and of no cutoff; and nothing tells it that it missed something.
"""
import sys

import jwt
import paho.mqtt.client as mqtt

host, port, name, key_file, audience = sys.argv[1:]
keys = jwt.PyJWKSet.from_json(open(key_file, encoding="utf-8").read())
revoked = set()

# The session stands at the broker, which keeps announcements while the device is away.
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
client.on_connect = lambda *_: client.subscribe("jwt_revoked", qos=1)
client.on_subscribe = lambda *_: print("listening", flush=True)
client.on_message = lambda _client, _data, message: revoked.add(message.payload.decode("utf-8", "replace"))
client.connect(host, int(port))
client.loop_start()

for token in map(str.strip, sys.stdin):
    try:
        key = keys[jwt.get_unverified_header(token).get("kid")]
        rules = {"algorithms": [key.algorithm_name], "audience": audience, "options": {"require": ["exp", "jti"]}}
        claims = jwt.decode(token, key.key, **rules)
        print(f"refused: {claims['jti']} is revoked" if claims["jti"] in revoked else f"accepted: {claims['jti']}", flush=True)
    except (jwt.PyJWTError, KeyError) as error:
        print(f"refused: {error}", flush=True)
client.loop_stop()
