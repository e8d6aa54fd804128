"""The way out of a sealed turn, whose network namespace holds nothing but a loopback of its own.

The turn's init makes listeners on 127.0.0.1 inside that namespace and hands them to the supervisor, which serves them
out here (serve.py): a socket belongs to the namespace it was made in, whoever accepts on it. So no bridge, no address
and no firewall is needed, and no token either: a listener is one turn's alone.

    rules.py, hello.py, model_rules.py, variables.py   decide, over values
    wire.py, network.py                                one request under bounds; names and connections
    connect.py                                         listener 1: HTTP proxy with an allow-list of hosts
    model.py                                           listener 2: the model's API, with the key put in
"""
