-- Asks for messages of which one server is to get each.
-- KEYS: who has asked lately, then the claim of each message.
-- ARGV: this server, how long claims and who has asked are kept, in milliseconds; then for each message when it was published, the
-- life of the server then, its turn, 1 if that does not matter any more, and what the claim is to say.
-- Returns who has asked lately, and for each message 1: it is this server's, 2: another server is to ask first, 0: it is another's,
-- or nobody can tell.
local node, ttl = ARGV[1], tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], int(now), node)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now - ttl))
redis.call('PEXPIRE', KEYS[1], int(ttl))
local nodes = redis.call('ZRANGE', KEYS[1], 0, -1)
table.sort(nodes)
local mine = {}
for i = 2, #KEYS do
	local a = 5 * (i - 2) + 3
	local result = 0
	if ARGV[a + 1] == run and now - tonumber(ARGV[a]) < ttl then
		if ARGV[a + 3] == '1' or nodes[tonumber(ARGV[a + 2]) % #nodes + 1] == node then
			local owner = redis.call('SET', KEYS[i], ARGV[a + 4], 'NX', 'GET', 'PX', int(ttl))
			if not owner or owner == ARGV[a + 4] then result = 1 end
		elseif redis.call('EXISTS', KEYS[i]) == 0 then
			result = 2
		end
	end
	mine[#mine + 1] = result
end
return {nodes, mine}
