-- Says that a node is alive, and finds those that are not.
-- KEYS: nodes by the time until which they are, and the dead. ARGV: the node, for how long it is alive, whether to look for dead
-- nodes. Returns whether the node was known, and the dead whose members have to leave.
local known = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
redis.call('ZADD', KEYS[1], int(now + tonumber(ARGV[2])), ARGV[1])
if ARGV[3] ~= '1' then return {known, {}} end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, 100)) do
	redis.call('ZREM', KEYS[1], node)
	redis.call('SADD', KEYS[2], node)
end
return {known, redis.call('SMEMBERS', KEYS[2])}
