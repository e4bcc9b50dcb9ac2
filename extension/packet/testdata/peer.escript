%%! -noshell
%% The other end of erlang_test.go: Erlang's own {packet, N}.
%%
%%   peer.escript client N:PORT...   sends bodies to each port, expects each back, and says "done"
%%   peer.escript server N...        says "N PORT" for each N, and sends back what it receives until the last peer has closed

-mode(compile).

main(["client" | Args]) ->
    lists:foreach(fun client/1, Args),
    io:format("done~n");
main(["server" | Args]) ->
    Self = self(),
    Servers = [spawn_link(fun() -> server(list_to_integer(Arg)), Self ! {done, Arg} end) || Arg <- Args],
    [receive {done, Arg} -> ok end || {Arg, _} <- lists:zip(Args, Servers)].

options(N) -> [binary, {packet, N}, {active, false}].

client(Arg) ->
    [N, Port] = [list_to_integer(S) || S <- string:split(Arg, ":")],
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, options(N), 10000),
    Max = case N of 1 -> 255; 2 -> 65535; 4 -> 1048576 end,
    Bodies = [rand:bytes(Size) || Size <- [1, 2, 100, Max, 0, 1]],
    %% one at a time
    lists:foreach(fun(Body) -> ok = gen_tcp:send(Socket, Body), same(Body, Socket) end, Bodies),
    %% all at once: while this process sends, the other one receives
    Self = self(),
    spawn_link(fun() -> lists:foreach(fun(Body) -> ok = gen_tcp:send(Socket, Body) end, Bodies), Self ! sent end),
    lists:foreach(fun(Body) -> same(Body, Socket) end, Bodies),
    receive sent -> ok end,
    ok = gen_tcp:close(Socket).

same(Body, Socket) ->
    {ok, Body} = gen_tcp:recv(Socket, 0, 10000).

server(N) ->
    {ok, Listener} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}} | options(N)]),
    {ok, Port} = inet:port(Listener),
    io:format("~w ~w~n", [N, Port]),
    {ok, Socket} = gen_tcp:accept(Listener, 10000),
    echo(Socket).

echo(Socket) ->
    case gen_tcp:recv(Socket, 0, 10000) of
        {ok, Body} -> ok = gen_tcp:send(Socket, Body), echo(Socket);
        {error, closed} -> ok
    end.
